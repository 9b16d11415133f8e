"""The networks that are compared: ours, Detectron2's and timm's, all with the same weights.

Axes: B images, H × W pixels.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

import timm
import torch
from detectron2.modeling import MViT as Detectron2MViT
from torch import Tensor, nn

from mvitv2_det import VARIANTS, MViT
from mvitv2_det.attention.multiscale import MultiScaleAttention

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NORM = partial(nn.LayerNorm, eps=1e-6)
TIMM_NAMES = {"T": "mvitv2_tiny", "S": "mvitv2_small", "B": "mvitv2_base", "L": "mvitv2_large"}
# What makes our backbone the classification network that timm has: no windows, no K/V doubling.
AS_TIMM = {"adaptive_window_size": 0, "global_kv_stride_factor": 1}


@dataclass(frozen=True)
class Setting:
    """What is measured: a size of network on a batch of images.

    Attributes:
        variant: of :data:`mvitv2_det.VARIANTS`.
        size: (H, W) in pixels.
        batch: B.
        precision: one of :data:`DTYPES`; other than fp32 is autocast, as in training.
    """

    variant: str
    size: tuple[int, int]
    batch: int
    precision: str
    device: str

    @property
    def name(self) -> str:
        """For tables."""
        height, width = self.size
        return f"{self.variant} {height}×{width}"

    @property
    def full_name(self) -> str:
        """For progress and pictures."""
        return f"{self.name}, batch {self.batch}, {self.precision}"

    @property
    def columns(self) -> dict[str, str]:
        """For tables."""
        return {"setting": self.name, "batch": str(self.batch), "precision": self.precision}

    def images(self) -> Tensor:
        """(B, 3, H, W), the same each time."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(self.batch, 3, *self.size, generator=generator)
        return images.to(self.device)

    def autocast(self) -> AbstractContextManager:
        """The precision of the forward pass."""
        enabled = self.precision != "fp32"
        return torch.autocast(self.device, DTYPES[self.precision], enabled=enabled)


def detectron2_network(setting: Setting, seed: int = 0) -> nn.Module:
    """Detectron2's MViT; none of its weights, norms and tables is trivial."""
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
    """Ours with the weights of Detectron2's."""
    model = MViT(
        **VARIANTS[setting.variant].backbone_arguments() | {"drop_path_rate": 0.0},
        norm_layer=NORM,
        attention_backend=backend,
        **options,
    )
    model.load_state_dict(weights.state_dict())
    return model.to(setting.device)


@contextmanager
def noted_backends(model: nn.Module) -> Iterator[set[str]]:
    """Fills a set with the names of what computes attention in the passes run meanwhile."""
    taken = set()
    handles = [
        module.register_forward_pre_hook(lambda m, inputs: taken.add(m.backend(inputs[0]).name))
        for module in model.modules()
        if isinstance(module, MultiScaleAttention)
    ]
    try:
        yield taken
    finally:
        for handle in handles:
            handle.remove()


class TimmBackbone(nn.Module):
    """timm's MViTv2 as a backbone: the maps of its four stages."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        # It makes tables for square images alone; on others it reads a part of their rows.
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


def timm_network(setting: Setting) -> nn.Module:
    """timm's, which attends over whole maps."""
    return TimmBackbone(setting).to(setting.device)


def inference(model: nn.Module, setting: Setting) -> Callable[[], dict[str, Tensor]]:
    """A forward pass without gradients."""
    images = setting.images()

    def step() -> dict[str, Tensor]:
        model.eval()
        with torch.inference_mode(), setting.autocast():
            return model(images)

    return step


def training(model: nn.Module, setting: Setting) -> Callable[[], None]:
    """A forward and a backward pass; the optimizer is the same for all and is left out."""
    images = setting.images()

    def step() -> None:
        model.train()
        _loss(model, images, setting).backward()
        model.zero_grad(set_to_none=True)

    return step


def forward_for_backward(model: nn.Module, setting: Setting) -> Callable[[], Tensor]:
    """The forward pass of training alone."""
    images = setting.images()
    return lambda: _loss(model.train(), images, setting)


def _loss(model: nn.Module, images: Tensor, setting: Setting) -> Tensor:
    with setting.autocast():
        features = model(images)
    return sum(feature.float().square().mean() for feature in features.values())
