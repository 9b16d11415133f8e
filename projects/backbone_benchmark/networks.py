"""Networks that are compared: ours, Detectron2's and timm's, all with the same weights.

Axes: B images, H × W pixels.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import timm
import torch
from detectron2.modeling import MViT as Detectron2MViT
from torch import Tensor, nn

from mvitv2_det import VARIANTS, MViT
from projects.common.results import DTYPES

NORM = partial(nn.LayerNorm, eps=1e-6)
TIMM_NAMES = {"T": "mvitv2_tiny", "S": "mvitv2_small", "B": "mvitv2_base", "L": "mvitv2_large"}
# Makes our backbone the classification network that timm has: no windows, no K/V doubling.
AS_TIMM = {"adaptive_window_size": 0, "global_kv_stride_factor": 1}


@dataclass(frozen=True)
class Setting:
    """Network size and input of a measurement.

    Attributes:
        variant: one of :data:`mvitv2_det.VARIANTS`.
        size: (H, W) in pixels.
        batch: B.
        precision: one of :data:`DTYPES`; those other than fp32 are autocast, as in training.
        device: ``"cpu"`` or ``"cuda"``.
    """

    variant: str
    size: tuple[int, int]
    batch: int
    precision: str
    device: str

    @property
    def name(self) -> str:
        """Variant and size, as in tables."""
        height, width = self.size
        return f"{self.variant} {height}×{width}"

    @property
    def full_name(self) -> str:
        """Everything but the device, as in progress and pictures."""
        return f"{self.name}, batch {self.batch}, {self.precision}"

    @property
    def columns(self) -> dict[str, str]:
        """First columns of each table."""
        return {"setting": self.name, "batch": str(self.batch), "precision": self.precision}

    def images(self) -> Tensor:
        """Makes the same (B, 3, H, W) images each time."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(self.batch, 3, *self.size, generator=generator)
        return images.to(self.device)

    def autocast(self) -> AbstractContextManager:
        """Makes the context that a forward pass runs in."""
        enabled = self.precision != "fp32"
        return torch.autocast(self.device, DTYPES[self.precision], enabled=enabled)


def detectron2_network(setting: Setting, seed: int = 0) -> nn.Module:
    """Makes Detectron2's MViT, with weights, norms and tables that are all random."""
    model = Detectron2MViT(
        **VARIANTS[setting.variant].backbone_arguments() | {"drop_path_rate": 0.0},
        norm_layer=NORM,
        out_features=("scale2", "scale3", "scale4", "scale5"),
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
    return model.to(setting.device)


def our_network(setting: Setting, weights: nn.Module, backend: str, **options) -> MViT:
    """Makes our MViT with the weights of Detectron2's."""
    model = MViT(
        **VARIANTS[setting.variant].backbone_arguments() | {"drop_path_rate": 0.0},
        norm_layer=NORM,
        attention_backend=backend,
        **options,
    )
    model.load_state_dict(weights.state_dict())
    return model.to(setting.device)


def both_networks(setting: Setting) -> dict[str, nn.Module]:
    """Makes Detectron2's MViT and ours, with the same weights."""
    reference = detectron2_network(setting)
    return {"Detectron2": reference, "ours": our_network(setting, reference, "auto")}


def stages_of(variant: str) -> list[str]:
    """Names the stage of every block."""
    blocks = VARIANTS[variant].blocks
    return [f"scale{2 + stage}" for stage, number in enumerate(blocks) for _ in range(number)]


def backends_of(model: nn.Module, setting: Setting) -> list[str]:
    """Names what computes the blocks of ours in a pass without gradients."""
    from mvitv2_det import explain

    with torch.inference_mode(), setting.autocast():
        return sorted({str(line.choice) for line in explain(model.eval(), setting.images())})


class TimmBackbone(nn.Module):
    """timm's MViTv2 as a backbone: the maps of its four stages, attention over whole maps."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        # Its tables are made for square images; on other images it reads a part of their rows.
        self.network = timm.create_model(
            TIMM_NAMES[setting.variant],
            img_size=max(setting.size),
            num_classes=0,
            drop_path_rate=0.0,
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) to ``scale2`` … ``scale5``."""
        maps = self.network.forward_intermediates(images, intermediates_only=True)
        return {f"scale{2 + stage}": one for stage, one in enumerate(maps)}


def inference(model: nn.Module, setting: Setting) -> Callable[[], dict[str, Tensor]]:
    """Makes a step of a forward pass without gradients."""
    images = setting.images()

    def step() -> dict[str, Tensor]:
        model.eval()
        with torch.inference_mode(), setting.autocast():
            return model(images)

    return step


def training(model: nn.Module, setting: Setting) -> Callable[[], None]:
    """Makes a step of a forward and a backward pass, without an optimizer."""
    forward = forward_for_backward(model, setting)

    def step() -> None:
        forward().backward()
        model.zero_grad(set_to_none=True)

    return step


def forward_for_backward(model: nn.Module, setting: Setting) -> Callable[[], Tensor]:
    """Makes a step of training's forward pass, which returns a loss."""
    images = setting.images()

    def step() -> Tensor:
        model.train()
        with setting.autocast():
            features = model(images)
        return sum(feature.float().square().mean() for feature in features.values())

    return step


STEPS: dict[str, Callable[[nn.Module, Setting], Callable]] = {
    "inference": inference,
    "training": training,
}
