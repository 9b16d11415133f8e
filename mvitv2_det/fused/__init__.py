"""The wing of speed: faster ways to compute the blocks of the plain model.

The plain model, ``attention/`` and ``backbone/``, does without it: :func:`accelerate`, which a
backbone calls when it has made its blocks, is all that joins them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..backbone.block import MultiScaleBlock
from .block import FusedBlock
from .choice import AUTO, BACKENDS, REFERENCE, SDPA, Choice, check_name
from .compiling import compile_blocks

__all__ = [
    "BACKENDS",
    "Explanation",
    "accelerate",
    "compile_blocks",
    "explain",
]


def accelerate(model: nn.Module, backend: str = AUTO, recompute_products: bool = False) -> None:
    """Has the blocks of a model computed by a backend; parameters and their names stay.

    Args:
        model: anything that contains blocks of this project, or none.
        backend: one of :data:`BACKENDS`, described in :mod:`mvitv2_det.fused.choice`.
        recompute_products: have backward compute q, k and v before pooling and the MLPs' hidden
            channels again instead of saving them, where norms, linear layers and MLP are fused.

    Raises:
        ValueError: there is no such backend, or it fuses none of these layers.
    """
    check_name(backend)
    if recompute_products and backend in (REFERENCE, SDPA):
        raise ValueError(
            f"recompute_products is for fused layers: attention_backend must be auto, tiled or "
            f"triton, got {backend!r}"
        )
    for block in model.modules():
        if type(block) is MultiScaleBlock:
            block.__class__ = FusedBlock  # same parameters, another forward pass
        if isinstance(block, FusedBlock):
            block.backend, block.recomputes = backend, recompute_products


@dataclass(frozen=True)
class Explanation:
    """What computed one block.

    Attributes:
        block: the block's name in the model.
        choice: what computed it, and why nothing faster.
    """

    block: str
    choice: Choice

    def __str__(self) -> str:
        reasons = (f"not {name}: {reason}" for name, reason in self.choice.passed_over)
        return f"{self.block}: {'; '.join([str(self.choice), *reasons])}"


def explain(model: nn.Module, *inputs: Tensor) -> list[Explanation]:
    """What computes each block of a model on these inputs, and why not something faster.

    Runs the model once, as it is: in its mode, with or without gradients, under autocast or not.

    Args:
        model: a backbone, or anything that contains one.
        inputs: what the model is called with, such as images (B, 3, H, W).

    Returns:
        one for each block that ran, in order; print them for a line each.
    """
    found = []

    def note(name: str) -> Callable[[Any, tuple[Tensor, ...]], None]:
        return lambda block, inputs: found.append(Explanation(name, block.choose(*inputs)))

    hooks = [
        block.register_forward_pre_hook(note(name))
        for name, block in model.named_modules()
        if isinstance(block, FusedBlock)
    ]
    try:
        model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found
