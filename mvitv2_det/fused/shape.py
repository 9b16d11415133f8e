"""What attention computes, apart from tensors."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AttentionShape:
    """What attention computes, apart from tensors.

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
