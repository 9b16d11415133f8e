"""MViTv2 that names what each person in a clip does (AVA: appendices A.2 and B.6).

Boxes of persons are given; a detector finds them. What follows the last norm is that of PySlowFast
(``ResNetRoIHead`` in ``slowfast/models/head_helper.py``): the mean over time, RoIAlign of each box,
the maximum over the region, dropout and a linear layer, one sigmoid for each action. The mean over
time and RoIAlign may change places, so this is the paper's "frame-wise RoIAlign".

Axes: B clips; T × H × W pixels or tokens; C channels; N boxes of all clips.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor
from torchvision.ops import roi_align

from ..backbone.schedule import BlockSpec
from ..backbone.trunk import PatchEmbed
from .recognizer import Recognizer

REGION = 7  # side of what RoIAlign makes of a box, in samples


class ActionRecognizer(Recognizer):
    """A network of clips whose linear layer is applied to boxes.

    Constructors and parameters are those of :class:`~mvitv2_det.Recognizer`, of which
    ``ActionRecognizer.video(…, num_classes=80)`` makes the networks of Table A.2; so the weights of
    a classifier of Kinetics initialise it, all but the linear layer. It takes clips of any size.

    Attributes:
        stride: pixels of a step on the last map, 32 for MViTv2. PySlowFast has it in its config,
            16 by default, which is not that of an MViT.
    """

    def __init__(
        self, patch_embed: PatchEmbed, schedule: Sequence[BlockSpec], *args: Any, **options: Any
    ) -> None:
        super().__init__(patch_embed, schedule, *args, **options)
        if self.axes != 3:
            raise ValueError(f"actions are of clips: expected 3 axes, got {self.axes}")
        strides = {
            patch_embed.proj.stride[axis] * prod(spec.attention.stride_q[axis] for spec in schedule)
            for axis in (1, 2)
        }
        if len(strides) > 1:
            raise ValueError(f"height and width must have one stride, got {sorted(strides)}")
        (self.stride,) = strides

    def forward(self, clips: Tensor, boxes: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        """Logits of the actions of each person.

        Args:
            clips: (B, 3, T, H, W).
            boxes: for each clip (N_b, 4): left, top, right and bottom in pixels of the clip. A clip
                may have none.

        Returns:
            (N, num_classes), clip by clip, before sigmoid.

        Raises:
            ValueError: ``clips`` has another number of dimensions or channels, or ``boxes`` are
                not those of as many clips.
        """
        if len(boxes) != len(clips) or any(box.dim() != 2 or box.shape[1] != 4 for box in boxes):
            raise ValueError(
                f"expected boxes (N, 4) of each of {len(clips)} clips, got shapes "
                f"{[tuple(box.shape) for box in boxes]}"
            )
        # The class token has had its part in the attention of all blocks.
        x, _ = self.run_blocks(clips)
        maps = self.norm(x).mean(dim=1).movedim(-1, 1)
        regions = roi_align(
            maps,
            [box.to(maps) for box in boxes],
            output_size=REGION,
            spatial_scale=1 / self.stride,
            sampling_ratio=0,
            aligned=True,
        )
        return self.head(regions.amax(dim=(-2, -1)))
