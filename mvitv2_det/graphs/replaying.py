"""A module whose passes are replayed where they can be, and run as before where they cannot."""

import logging
import weakref
from collections.abc import Hashable
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..caching import Keeper, keeping_blocks
from .passes import InferencePass, InFlight, Outputs, TrainingPass, renew_generator

Pass = InferencePass | TrainingPass
_Key = tuple[Hashable, tuple[Keeper | None, ...]]
_Value = TypeVar("_Value")
_GIB = 2**30
_DEVICES = ("cuda",)

_log = logging.getLogger(__name__)


def replay_graphs(
    module: nn.Module, *, training: bool = False, max_graphs: int = 64, max_gib: float = 4.0
) -> "GraphedForward":
    """Has a module's passes on GPUs replayed as CUDA graphs, one for each size of input.

    Outputs are the same bits as without. What cannot be replayed runs as before. Weights may be
    changed in place, as optimizers and ``load_state_dict`` do; a module whose parameters are
    replaced, or moved to another device, must be given to this function again. A graph that is
    recorded within :func:`mvitv2_det.constant_weights` reads what is kept there, is never replayed
    after it, and is let go of when the next one is recorded.

    Args:
        module: takes one tensor, and returns a tensor or a dict of tensors: a backbone or a
            classifier, not a whole detector, whose number of boxes differs from image to image.
        training: replay forward and backward passes of training too. Their outputs hold until the
            next pass; a pass that begins before the backward pass of another runs as before.
        max_graphs, max_gib: bounds of the number of graphs and of the GiB of their inputs and
            outputs together. All share the memory of their intermediate results. Sizes beyond run
            without a graph.

    Returns:
        what has become ``module.forward``; :meth:`GraphedForward.stop` ends it.
    """
    module.__dict__.pop("forward", None)
    graphed = GraphedForward(module, training, max_graphs, max_gib)
    module.forward = graphed  # of this instance alone; hooks still run
    return graphed


class GraphedForward:
    """A module's forward pass, by graphs where possible; see :func:`replay_graphs`.

    Attributes:
        refused: why inputs of a key (shape, dtype, autocast's dtype, what trains, what is kept of
            constant weights) have no graph.
    """

    def __init__(self, module: nn.Module, training: bool, max_graphs: int, max_gib: float) -> None:
        self._module, self._trains = module, training
        self._max_graphs, self._max_bytes = max_graphs, max_gib * _GIB
        self._graphs: dict[_Key, Pass] = {}
        self._pool: Any = None
        self._gradients: Tensor | None = None
        self._ended = ""  # why nothing is recorded any more
        self._in_flight: weakref.ref[InFlight] | None = None
        self.refused: dict[_Key, str] = {}

    @cached_property
    def _parameters(self) -> tuple[nn.Parameter, ...]:
        return tuple(self._module.parameters())

    @cached_property
    def _blocks(self) -> tuple[Any, ...]:
        return keeping_blocks(self._module)

    @cached_property
    def _inside(self) -> tuple[nn.Module, ...]:
        return tuple(self._module.modules())

    def __call__(self, x: Tensor) -> Outputs:
        """Replays the graph of ``x``'s size, records it first, or runs the module."""
        if self.why_not(x) is not None:
            return self._plain(x)
        key = self._key(x)
        graph = self._graphs.get(key) or self._recorded(x, key)
        if graph is None:
            return self._plain(x)
        if not isinstance(graph, TrainingPass):
            return graph(x)
        in_flight = InFlight()
        self._in_flight = weakref.ref(in_flight)
        return graph(x, in_flight)

    def why_not(self, x: Tensor) -> str | None:
        """Why a pass on ``x`` is not replayed here and now; None where it is, or will be."""
        if x.device.type not in _DEVICES:
            return f"CUDA graphs are of GPUs, got a tensor on {x.device.type}"
        is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if is_traced or torch.cuda.is_current_stream_capturing():
            return "another graph is being recorded"
        if self._in_flight is not None and self._in_flight() is not None:
            return "the backward pass of another pass is still to come"
        if any(map(_has_hooks, self._inside[1:])):
            return "a module inside has hooks, which would run in the recording alone"
        if torch.is_grad_enabled():
            reason = self._why_not_training(x)
        else:
            reason = "the module is in training mode" if self._module.training else None
        return reason or self.refused.get(self._key(x))

    def _why_not_training(self, x: Tensor) -> str | None:
        if not self._trains:
            return "gradients are asked for, and graphs for training are not"
        if x.requires_grad:
            return "the gradient of the input is asked for"
        if not any(parameter.requires_grad for parameter in self._parameters):
            return "gradients are asked for, and nothing trains"
        if len({parameter.dtype for parameter in self._parameters}) > 1:
            return "its parameters have several types"
        if any(parameter._backward_hooks for parameter in self._parameters):
            return "a parameter has hooks, which would run twice"
        for module in self._inside:
            if isinstance(module, _BatchNorm) and module.training:
                return "a batch norm inside would count the passes before the recording"
            if module.training and getattr(module, "use_act_checkpoint", False):
                return "its blocks are computed again in backward (use_act_checkpoint)"
        return None

    def stop(self) -> None:
        """Gives the module its own forward pass back, and lets go of all graphs."""
        self._module.__dict__.pop("forward", None)
        self._graphs.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> "GraphedForward":
        """The same for the copy of the module, without graphs: those read this one's weights."""
        module = memo.get(id(self._module), self._module)
        return GraphedForward(module, self._trains, self._max_graphs, self._max_bytes / _GIB)

    def _plain(self, x: Tensor) -> Outputs:
        return type(self._module).forward(self._module, x)

    def _key(self, x: Tensor) -> _Key:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        trains: bytes | None = None
        kept: tuple[Keeper | None, ...] = ()  # passes with gradients read nothing of it
        if torch.is_grad_enabled():
            trains = bytes(parameter.requires_grad for parameter in self._parameters)
        else:
            kept = tuple(block.kept for block in self._blocks)
        modes = bytes(module.training for module in self._inside)
        return (tuple(x.shape), x.dtype, dtype, trains, modes), kept

    def _recorded(self, x: Tensor, key: _Key) -> Pass | None:
        """Records the graph of a size; None, with a log line, where there is no room or no way."""
        self._graphs = _without_ended(self._graphs)
        self.refused = _without_ended(self.refused)
        held = sum(graph.nbytes for graph in self._graphs.values())
        if self._ended:
            reason = self._ended
        elif len(self._graphs) >= self._max_graphs:
            reason = f"there are {len(self._graphs)} graphs already, as many as asked for"
        elif held >= self._max_bytes:
            reason = f"the graphs hold {held / _GIB:.1f} GiB already, as much as asked for"
        else:
            try:
                self._graphs[key] = self._record(x)
                return self._graphs[key]
            except RuntimeError as error:  # whatever a driver, or a module of a user's, raises
                reason = f"it cannot be recorded: {' '.join(str(_first(error)).split())[:200]}"
                if x.is_cuda and renew_generator(x.device):
                    # Graphs from before draw from the generator that is lost.
                    self._graphs.clear()
                    self._ended = f"an earlier recording has failed: {reason}"
        self.refused[key] = reason
        _log.warning("no CUDA graph for inputs of %s: %s", tuple(x.shape), reason)
        return None

    def _record(self, x: Tensor) -> Pass:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        if not torch.is_grad_enabled():
            return InferencePass(self._plain, x, self._pool)
        parameters = [parameter for parameter in self._parameters if parameter.requires_grad]
        total = sum(parameter.numel() for parameter in parameters)
        if self._gradients is None or len(self._gradients) < total:
            self._gradients = torch.empty(total, dtype=parameters[0].dtype, device=x.device)
        return TrainingPass(self._plain, x, parameters, self._gradients, self._pool)


def _first(error: BaseException) -> BaseException:
    """The error that ended a recording; the end of the recording then raises another."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _without_ended(found: dict[_Key, _Value]) -> dict[_Key, _Value]:
    """What belongs to weights that are still promised to be constant, or were not."""
    return {
        key: value
        for key, value in found.items()
        if not any(keeper is not None and keeper.ended for keeper in key[1])
    }
