"""A pyramid of one feature map, resampled (Table 9).

Axes: B images, H × W pixels, C channels.
"""

from detectron2.layers import get_norm
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

FIRST_LEVEL, LAST_LEVEL = 2, 5


class ResampledPyramid(Backbone):
    """Four maps of strides 4 to 32, up- and down-sampled from a plain ViT's one.

    The paper adopts the scheme of XCiT (El-Nouby et al. 2021, its reference [50]): finer levels by
    transposed convolutions of stride 2, two of them with a norm and GELU between for the finest,
    coarser ones by max pooling; all keep the channels. An FPN on top makes them its own.

    Args:
        bottom_up: a backbone with one feature map, of stride 16.
        norm: of the finest level, a name known to Detectron2, or ``""`` for none.

    Raises:
        ValueError: the backbone has several maps, or its stride is another.
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
        """That of the backbone."""
        return self.bottom_up.size_divisibility

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps of images (B, 3, H, W): for each scale of stride s, (B, C, H / s, W / s)."""
        x = self.bottom_up(images)[self._in_feature]
        return {
            "scale2": self.scale2(x),
            "scale3": self.scale3(x),
            "scale4": x,
            "scale5": self.scale5(x),
        }
