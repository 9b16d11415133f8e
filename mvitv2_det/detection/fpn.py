"""Feature pyramid on an MViT (section 4.2, "FPN integration").

Axes: B images, H × W pixels, C channels.
"""

import torch.nn.functional as F
from detectron2.modeling.backbone.fpn import FPN
from torch import Tensor

from ..sizes import divide_up, known


class MViTFPN(FPN):
    """Detectron2's FPN that pads its input itself, and never crops it.

    The top-down path needs feature maps that halve exactly from level to level. Images are
    therefore padded with zeros, below and to the right, up to the stride of the coarsest map, so
    that the network also takes images that nobody has padded. Names of parameters and outputs
    are those of Detectron2's FPN.

    Args:
        bottom_up: the backbone.
        in_features: names of its feature maps to use, fine to coarse.
        out_channels: channels of every output map.
        norm: normalisation of the convolutions, a name known to Detectron2 or ``""`` for none.
        top_block: makes levels beyond the coarsest map.
        fuse_type: ``"sum"`` or ``"avg"`` of lateral and top-down maps.
        square_pad: side of the square that images are padded to; 0 for none. An image larger
            than that keeps all of its pixels and is padded to the stride, where Detectron2's FPN
            would silently cut it off.
    """

    def __init__(
        self,
        bottom_up,
        in_features,
        out_channels,
        norm="",
        top_block=None,
        fuse_type="sum",
        square_pad=0,
    ) -> None:
        # The parent must not learn of square_pad: it would have images cropped to it.
        super().__init__(bottom_up, in_features, out_channels, norm, top_block, fuse_type)
        self._least_side = square_pad

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps of images (B, 3, H, W).

        Returns:
            for each level l, ``p2`` to ``p6`` by default, (B, C, H' / 2^l, W' / 2^l), where H'
            and W' are the sides after padding.
        """
        height, width = (self._padded(side) for side in images.shape[-2:])
        padding = (0, width - images.shape[-1], 0, height - images.shape[-2])
        if not known(height, width) or any(padding):
            images = F.pad(images, padding)
        return super().forward(images)

    def _padded(self, side: int) -> int:
        """``side``, at least that of the square, rounded up to the stride."""
        stride = self.size_divisibility
        return divide_up(max(side, self._least_side), stride) * stride
