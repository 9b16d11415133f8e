"""Tensors that are made once: constants per size and device, and what others keep for a while."""

import functools
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

_CACHES: list[dict[tuple[Any, ...], Tensor]] = []
_SIZES = 256  # kept per function; images of a training set come in a few hundred sizes
Made = TypeVar("Made")


def cached_per_device(build: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Keeps what ``build(*sizes, device=…)`` returned last for each of its arguments.

    The tensors are made outside of inference mode, so that training can use them too. What is
    made in compilation, in tracing or with fake tensors is not kept: it is a part of a graph.
    """
    made: dict[tuple[Any, ...], Tensor] = {}
    _CACHES.append(made)

    @functools.wraps(build)
    def get(*sizes: Any, device: torch.device) -> Tensor:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return build(*sizes, device=device)
        key = (*sizes, device)
        if (found := made.get(key)) is not None:
            return found
        with torch.inference_mode(False), torch.no_grad():
            tensor = build(*sizes, device=device)
        if type(tensor) is Tensor:
            if len(made) >= _SIZES:
                made.pop(next(iter(made)), None)
            made[key] = tensor
        return tensor

    get.made = made  # type: ignore[attr-defined]  # functions have no such attribute
    return get


def kept_tensors() -> tuple[Tensor, ...]:
    """All tensors that are kept now, for those who must not lose them when others are made."""
    return tuple(tensor for made in _CACHES for tensor in made.values())


class Keeper:
    """Keeps what is made. What there is no room for is made each time: nothing is replaced.

    Attributes:
        ended: whether all of it has been let go of, for good.
    """

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}
        self.ended = False

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What ``make`` returned when it was first called for this key.

        What is made while a CUDA graph is recorded lies in the graph's own memory, and is not kept.
        """
        if key in self._made:
            return self._made[key]
        made = make()
        is_recording = torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
        if len(self._made) < _SIZES and not self.ended and not is_recording:
            self._made[key] = made
        return made

    def end(self) -> None:
        """Lets go of all that is kept, and keeps nothing more."""
        self.ended = True
        self._made.clear()


def keeping_blocks(model: nn.Module) -> tuple[Any, ...]:
    """The blocks of a model that have a ``kept``: a :class:`Keeper`, or None."""
    return tuple(module for module in model.modules() if hasattr(type(module), "kept"))


# Weights may change at any time, and nothing tells when they do: each pass casts them to the type
# of products, puts the parameters of pooling together and resizes tables of positions anew. Where
# all passes are known to be of the same weights, once is enough.
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
    blocks = [block for block in keeping_blocks(model) if block.kept is None]
    for block in blocks:
        block.kept = Keeper()
    try:
        yield
    finally:
        for block in blocks:
            if block.kept is not None:
                block.kept.end()
            block.kept = None
