"""Feature pyramid made by resampling one feature map (Table 9).

Axes: B images, H × W pixels, C channels.
"""

from detectron2.layers import get_norm
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

FIRST_LEVEL, LAST_LEVEL = 2, 5


class ResampledPyramid(Backbone):
    """Four feature maps of strides 4 to 32, resampled from the single map of a plain ViT.

    The paper adopts the scheme of XCiT (El-Nouby et al. 2021, its reference [50]). Transposed
    convolutions of stride 2 make the finer levels; the finest takes two of them, with a norm and
    a GELU in between. Max pooling makes the coarser level. All levels keep the number of
    channels, which an FPN on top of this module then changes.

    Args:
        bottom_up: a backbone with one feature map, of stride 16.
        norm: norm of the finest level, a name known to Detectron2, or ``""`` for none.

    Raises:
        ValueError: the backbone has several maps, or a map of another stride.
    """

    def __init__(self, bottom_up: Backbone, norm: str = "SyncBN") -> None:
        super().__init__()
        shapes = bottom_up.output_shape()
        if len(shapes) != 1:
            raise ValueError(
                f"bottom_up must have one feature map, got {len(shapes)}: {', '.join(shapes)}"
            )
        ((self._in_feature, shape),) = shapes.items()
        if shape.stride != 16:
            raise ValueError(f"the feature map must be of stride 16, got {shape.stride}")
        channels = shape.channels
        self.bottom_up = bottom_up
        self.scale2 = nn.Sequential(
            nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2),
            get_norm(norm, channels) or nn.Identity(),
            nn.GELU(),
            nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2),
        )
        self.scale3 = nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2)
        self.scale5 = nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True)
        levels = range(FIRST_LEVEL, LAST_LEVEL + 1)
        self._out_features = [f"scale{level}" for level in levels]
        self._out_feature_strides = {f"scale{level}": 2**level for level in levels}
        self._out_feature_channels = dict.fromkeys(self._out_features, channels)

    @property
    def size_divisibility(self) -> int:
        """The number of pixels that the sides of images must be divisible by."""
        return self.bottom_up.size_divisibility

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Computes the feature maps of images (B, 3, H, W).

        Returns:
            Maps (B, C, H / s, W / s) of each stride s, named ``scale2`` to ``scale5``.
        """
        x = self.bottom_up(images)[self._in_feature]
        return {
            "scale2": self.scale2(x),
            "scale3": self.scale3(x),
            "scale4": x,
            "scale5": self.scale5(x),
        }
