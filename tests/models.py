"""Small models for tests, and weights that hide no error."""

from functools import partial

import torch
from torch import nn

from mvitv2_det import VARIANTS

SHAPES = tuple(VARIANTS)


def narrow(variant: str, **changes) -> dict:
    """Keywords of a backbone with a variant's depth, heads and stages, and 8 channels a head."""
    arguments = VARIANTS[variant].backbone_arguments()
    arguments["embed_dim"] = 8 * arguments["num_heads"]
    arguments["drop_path_rate"] = 0.0
    arguments["norm_layer"] = partial(nn.LayerNorm, eps=1e-6)
    return arguments | changes


# Four blocks, one a stage: the smallest network with all stage transitions.
TINY = {
    "embed_dim": 8,
    "depth": 4,
    "num_heads": 1,
    "last_block_indexes": (0, 1, 2, 3),
    "norm_layer": partial(nn.LayerNorm, eps=1e-6),
}


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Shifts every parameter at random: position tables start at zero and norms at one, and
    values like these hide errors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest expected value."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()
