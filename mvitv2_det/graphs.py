"""CUDA graphs of inference: the launches of a pass are recorded once, and replayed by one call.

A network of this kind launches hundreds of short kernels. For one image on a large GPU the host
takes several times as long to launch them as the GPU takes to run them. A graph of a size is
recorded when an input of that size is first seen.
"""

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .caching import kept_tensors

# What a backbone or a classifier returns.
Outputs = Tensor | dict[str, Tensor]
_WARM_UPS = 3  # passes before the recording: compilation, choice of algorithms, constants of a size
_GIB = 2**30
_DEVICES = ("cuda",)

_log = logging.getLogger(__name__)


def replay_graphs(
    module: nn.Module, *, max_graphs: int = 64, max_gib: float = 4.0
) -> "GraphedForward":
    """Has a module's inference passes on GPUs replayed as CUDA graphs, one for each size of input.

    Outputs are the same bits as without. What cannot be replayed, such as a pass with gradients,
    runs as before. Weights may be changed in place, as ``load_state_dict`` does; a module whose
    parameters are replaced, or moved to another device, must be given to this function again.

    Args:
        module: takes one tensor, and returns a tensor or a dict of tensors: a backbone or a
            classifier, not a whole detector, whose number of boxes differs from image to image.
        max_graphs, max_gib: bounds of the number of graphs and of the GiB of their inputs and
            outputs together. All share the memory of their intermediate results. Sizes beyond run
            without a graph.

    Returns:
        what has become ``module.forward``; :meth:`GraphedForward.stop` ends it.
    """
    module.__dict__.pop("forward", None)
    graphed = GraphedForward(module, max_graphs, max_gib)
    module.forward = graphed  # of this instance alone; hooks still run
    return graphed


@dataclass(frozen=True)
class _Graph:
    """A recorded pass.

    Attributes:
        replay: runs it on what ``inputs`` holds, and writes ``outputs``.
        constants: tensors that the pass reads and others may let go of.
    """

    replay: Callable[[], None]
    inputs: Tensor
    outputs: Outputs
    constants: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of inputs and outputs."""
        return sum(tensor.nbytes for tensor in (self.inputs, *_tensors(self.outputs)))

    def __call__(self, x: Tensor) -> Outputs:
        """The outputs for ``x``, in memory of their own."""
        self.inputs.copy_(x)
        self.replay()
        if isinstance(self.outputs, Tensor):
            return self.outputs.clone()
        return {name: tensor.clone() for name, tensor in self.outputs.items()}


class GraphedForward:
    """A module's forward pass, by graphs where possible; see :func:`replay_graphs`.

    Attributes:
        refused: why inputs of a key (shape, dtype, autocast's dtype) have no graph.
    """

    def __init__(self, module: nn.Module, max_graphs: int, max_gib: float) -> None:
        self._module = module
        self._max_graphs, self._max_bytes = max_graphs, max_gib * _GIB
        self._graphs: dict[Hashable, _Graph] = {}
        self._pool: Any = None
        self.refused: dict[Hashable, str] = {}

    def __call__(self, x: Tensor) -> Outputs:
        """Replays the graph of ``x``'s size, records it first, or runs the module."""
        if self.why_not(x) is not None:
            return self._plain(x)
        key = _key(x)
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._recorded(x, key)
        return self._plain(x) if graph is None else graph(x)

    def why_not(self, x: Tensor) -> str | None:
        """Why a pass on ``x`` is not replayed here and now; None where it is, or will be."""
        if x.device.type not in _DEVICES:
            return f"CUDA graphs are of GPUs, got a tensor on {x.device.type}"
        if torch.is_grad_enabled():
            return "gradients are asked for"
        if self._module.training:
            return "the module is in training mode"
        is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if is_traced or torch.cuda.is_current_stream_capturing():
            return "another graph is being recorded"
        return self.refused.get(_key(x))

    def stop(self) -> None:
        """Gives the module its own forward pass back, and lets go of all graphs."""
        self._module.__dict__.pop("forward", None)
        self._graphs.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> "GraphedForward":
        """The same for the copy of the module, without graphs: those read this one's weights."""
        module = memo.get(id(self._module), self._module)
        return GraphedForward(module, self._max_graphs, self._max_bytes / _GIB)

    def _plain(self, x: Tensor) -> Outputs:
        return type(self._module).forward(self._module, x)

    def _recorded(self, x: Tensor, key: Hashable) -> _Graph | None:
        """Records the graph of a size; None, with a log line, where there is no room or no way."""
        held = sum(graph.nbytes for graph in self._graphs.values())
        if len(self._graphs) >= self._max_graphs:
            reason = f"there are {len(self._graphs)} graphs already, as many as asked for"
        elif held >= self._max_bytes:
            reason = f"the graphs hold {held / _GIB:.1f} GiB already, as much as asked for"
        else:
            try:
                if self._pool is None:
                    self._pool = torch.cuda.graph_pool_handle()
                # Tensors made in inference mode could not be written to outside of it.
                with torch.inference_mode(False), torch.no_grad(), _same_autocast(x):
                    inputs = x.clone()
                    replay, outputs = _record(lambda: self._plain(inputs), self._pool)
                self._graphs[key] = _Graph(replay, inputs, outputs, kept_tensors())
                return self._graphs[key]
            except RuntimeError as error:  # whatever a driver, or a module of a user's, raises
                reason = f"it cannot be recorded: {' '.join(str(error).split())[:200]}"
        self.refused[key] = reason
        _log.warning("no CUDA graph for inputs of %s: %s", tuple(x.shape), reason)
        return None


def _key(x: Tensor) -> Hashable:
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return tuple(x.shape), x.dtype, dtype


def _same_autocast(x: Tensor) -> torch.autocast:
    """The surrounding autocast without its cache of weights, which would hold a graph's memory."""
    kind = x.device.type
    dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    return torch.autocast(kind, dtype, enabled=enabled, cache_enabled=False)


def _record(run: Callable[[], Outputs], pool: Any) -> tuple[Callable[[], None], Outputs]:
    """Records what ``run`` launches: a function that launches it again, and the outputs."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        outputs = run()
    return graph.replay, outputs


def _tensors(outputs: Outputs) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs.values())
