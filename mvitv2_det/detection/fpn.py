"""Feature pyramid network on an MViT (section 4.2, "FPN integration").

Axes: B images, H × W pixels, C channels.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.backbone.fpn import FPN
from torch import Tensor, nn

from ..sizes import divide_up, known


class MViTFPN(FPN):
    """Detectron2's FPN, which also pads its input, and never crops it.

    The top-down path needs feature maps whose sides halve exactly from level to level. Images of
    any size are therefore padded with zeros at the bottom and the right, to a multiple of the
    stride of the coarsest map. The names of parameters and outputs are those of Detectron2's FPN.

    Args:
        bottom_up: the backbone.
        in_features: names of the backbone's feature maps to use, fine to coarse.
        out_channels: channels of every output map.
        norm: normalisation of the convolutions, a name known to Detectron2 or ``""`` for none.
        top_block: module that makes the levels beyond the coarsest map.
        fuse_type: ``"sum"`` or ``"avg"`` of lateral and top-down maps.
        square_pad: side in pixels of the square that images are padded to; 0 for none. A larger
            image keeps all of its pixels and is padded to a multiple of the stride, whereas
            Detectron2's FPN would silently crop it.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int,
        norm: str = "",
        top_block: nn.Module | None = None,
        fuse_type: str = "sum",
        square_pad: int = 0,
    ) -> None:
        # square_pad is not passed on, because the parent would crop images to it.
        super().__init__(bottom_up, in_features, out_channels, norm, top_block, fuse_type)
        self.least_side = square_pad

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Computes the feature maps of images (B, 3, H, W).

        Returns:
            Maps (B, C, H' / 2^l, W' / 2^l) of each level l, ``p2`` to ``p6`` by default, where H'
            and W' are the height and width after padding.
        """
        height, width = (self._padded(side) for side in images.shape[-2:])
        padding = (0, width - images.shape[-1], 0, height - images.shape[-2])
        if not known(height, width) or any(padding):
            images = F.pad(images, padding)
        return super().forward(images)

    def _padded(self, side: int) -> int:
        """Rounds a side up to a multiple of the stride, and at least to the side of the square."""
        stride = self.size_divisibility
        return divide_up(max(side, self.least_side), stride) * stride
