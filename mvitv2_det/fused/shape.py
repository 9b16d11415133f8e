"""The shape of one attention: everything that is not a tensor."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class AttentionShape:
    """Heads, scale and windows of one attention on maps of one size.

    Attributes:
        heads: h.
        scale: of the content logits; positive.
        window_q, window_kv: height and width of the windows in queries and in keys; the whole
            map where attention is global.
        residual: whether the queries are added to the output (Eq. 5).
        mask_padding: whether zero-padded keys are hidden from queries. By default they are seen,
            as in Detectron2's MViT: content logit 0, their position logits, value 0.
    """

    heads: int
    scale: float
    window_q: tuple[int, int]
    window_kv: tuple[int, int]
    residual: bool
    mask_padding: bool = False

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, H, W, h·d) to (B, H, W, h, d)."""
        return x.unflatten(3, (self.heads, -1))
