"""Compilation block by block."""

from dataclasses import replace
from types import FunctionType
from typing import Any, cast

import torch
from packaging.version import Version
from torch import Tensor, nn

from ..errors import UserError
from .block import FusedBlock, PathScales

# Dynamo of torch 2.8, 2.9, 2.10 and 2.12 cannot trace some blocks, and compiles others for odd and
# for even sizes.
OLDEST_TORCH = Version("2.14")


def compile_blocks(model: nn.Module, *, fullgraph: bool = True, **options: Any) -> None:
    """Compiles block by block, when each first runs, for token maps of any height and width.

    Sizes of blocks in a row nest, and the whole network takes the compiler minutes; one block
    takes seconds, and blocks of the same numbers share what was compiled. Weights, their names
    and checkpoints stay as they are. Copies and pickles of the model are not compiled.

    Args:
        model: a backbone, or anything that contains one.
        fullgraph: raise an error, instead of going on without compilation, where a block cannot
            be compiled in one piece or was compiled too often
            (``torch._dynamo.config.recompile_limit``, for each kind of block).
        options: further keywords of :func:`torch.compile`.

    Raises:
        UserError: torch is older than 2.14.
        ValueError: the model has no blocks of this project.
    """
    if Version(torch.__version__) < OLDEST_TORCH:
        raise UserError(
            f"compile_blocks needs torch {OLDEST_TORCH} or newer, got {torch.__version__}: leave "
            f"it out, or install a newer torch"
        )
    compiled = {}
    for block in model.modules():
        if isinstance(block, FusedBlock):
            kind = replace(block.spec, stage=0, drop_path=0.0, ends_stage=False)
            if kind not in compiled:
                function = _with_own_code(cast(FunctionType, _compute))
                compiled[kind] = torch.compile(function, fullgraph=fullgraph, **options)
            block.compiled = compiled[kind]
    if not compiled:
        raise ValueError(f"{type(model).__name__} has no blocks of mvitv2_det to compile")


def _compute(block: FusedBlock, x: Tensor, path_scales: PathScales) -> Tensor:
    return block.compute(x, block.choose(x), path_scales)


def _with_own_code(function: FunctionType) -> FunctionType:
    """A copy with a code object of its own.

    Dynamo keeps compiled code with code objects, looks it up in one after the other, and counts
    compilations for each.
    """
    return FunctionType(function.__code__.replace(), function.__globals__)
