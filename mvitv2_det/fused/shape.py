"""The shape of one attention: everything that is not a tensor."""

from collections.abc import Sequence
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
        frames: T of a clip, whose frames lie below each other in its map; 1 for images.
    """

    heads: int
    scale: float
    window_q: tuple[int, int]
    window_kv: tuple[int, int]
    residual: bool
    mask_padding: bool = False
    frames: int = 1

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, H, W, h·d) to (B, H, W, h, d)."""
        return x.unflatten(3, (self.heads, -1))

    def on_map(self, embeddings: Sequence[Tensor]) -> Sequence[Tensor]:
        """R of Eq. 4 for the rows and columns of the map.

        Of a clip a row is a row of a frame: R of its height and R of its time are added. That is
        T² as large as what it is made of, so it is made where it is read.

        Args:
            embeddings: R per axis, (Q_a, K_a, d): of height, of width, and of a clip's time, if
                that has a table; or none.

        Returns:
            (Q_a, K_a, d) of the rows and of the columns; or none.
        """
        if not embeddings or (self.frames == 1 and len(embeddings) == 2):
            return embeddings
        height, width, *times = embeddings
        rows = height[None, :, None].expand(self.frames, -1, self.frames, -1, -1)
        for time in times:
            rows = rows + time[:, None, :, None]
        return rows.flatten(2, 3).flatten(0, 1), width
