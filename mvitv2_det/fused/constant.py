"""A promise that weights do not change, for which blocks keep what they make of them.

Weights may change at any time, and nothing tells when they do: each pass casts them to the type of
products, puts the parameters of pooling together and resizes tables of positions anew. Where all
passes are known to be of the same weights, once is enough.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..caching import Keeper
from .block import FusedBlock


@contextmanager
def constant_weights(model: nn.Module) -> Iterator[None]:
    """Within this context no weight of the model is changed, replaced, moved or converted.

    Under autocast blocks then keep their weights in its type as well, and on a GPU a pass launches
    a fifth fewer kernels; in float32 on a CPU nothing is made of them, and nothing is gained.

    Passes with gradients make all of it each time, as outside. Contexts may lie within each other:
    the outermost one counts. Copies of the model are promised nothing; ``nn.DataParallel``, which
    copies it in each pass, cannot be used within. After the context nothing is kept. A CUDA graph
    that is recorded within is replayed within alone.

    Args:
        model: a backbone, or anything that contains one, or none.
    """
    blocks = [
        block for block in model.modules() if isinstance(block, FusedBlock) and block.kept is None
    ]
    for block in blocks:
        block.kept = Keeper()
    try:
        yield
    finally:
        for block in blocks:
            if block.kept is not None:
                block.kept.end()
            block.kept = None
