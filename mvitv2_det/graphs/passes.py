"""Recorded passes: inference, and training's forward with its backward."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..caching import kept_tensors

# What a backbone or a classifier returns.
Outputs = Tensor | dict[str, Tensor]
_WARM_UPS = 3  # passes before the recording: compilation, choice of algorithms, constants of a size


class InferencePass:
    """A recorded pass without gradients.

    Args:
        forward: the pass.
        x: an input of the size.
        pool: memory that the graphs of a module share.

    Attributes:
        nbytes: of what is held between calls.
    """

    def __init__(self, forward: Callable[[Tensor], Outputs], x: Tensor, pool: Any) -> None:
        # Tensors made in inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad(), _same_autocast(x):
            self._input = x.clone()
            _warm_up(lambda: forward(self._input))
            self._form, run = _flattened(forward)
            self._replay, self._outputs = _record(lambda: run(self._input), pool)
        self._constants = kept_tensors()  # which the graph reads and others may let go of
        self.nbytes = _nbytes([self._input, *self._outputs])

    def __call__(self, x: Tensor) -> Outputs:
        """The outputs for ``x``, in memory of their own."""
        self._input.copy_(x)
        self._replay()
        return self._form.whole([output.clone() for output in self._outputs])


class InFlight:
    """A training pass between its forward and the end of its backward; it dies with them."""

    __slots__ = ("__weakref__",)


class TrainingPass:
    """A recorded forward pass, and its recorded backward pass.

    What forward keeps for backward lies in the memory that all graphs share: no other pass may be
    replayed between the two.

    Args:
        forward: the pass.
        x: an input of the size.
        parameters: those that need gradients.
        gradients: memory for all of theirs, side by side.
        pool: memory that the graphs of a module share.

    Attributes:
        nbytes: of what is held between calls.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Outputs],
        x: Tensor,
        parameters: Sequence[Tensor],
        gradients: Tensor,
        pool: Any,
    ) -> None:
        self._parameters, self._gradients = tuple(parameters), gradients
        self._input = x.detach().clone()
        self._grads: list[Tensor] = []
        self._form, self._run = _flattened(forward)
        with _same_autocast(x), torch.random.fork_rng(_indices(x)):
            _warm_up(lambda: (self._forward(), self._backward()))
            self._replay_forward, self._outputs = _record(self._forward, pool)
            self._replay_backward, _ = _record(self._backward, pool)
            self._live: list[Tensor] = []
        self._constants = kept_tensors()
        self.nbytes = _nbytes([self._input, *self._outputs, *self._grads])

    def __call__(self, x: Tensor, in_flight: InFlight) -> Outputs:
        """The outputs for ``x``, which hold until the next pass; ``in_flight`` lives as long."""
        outputs = _Replayed.apply(self, in_flight, x, *self._parameters)
        return self._form.whole(list(outputs))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Replays the forward pass."""
        self._input.copy_(x)
        self._replay_forward()
        return [output.detach() for output in self._outputs]

    def backward(self, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Replays the backward pass of the last forward pass; a gradient of each parameter."""
        differentiable = [grads[i] for i in self._differentiable]
        for held, grad in zip(self._grads, differentiable, strict=True):
            held.zero_() if grad is None else held.copy_(grad)
        self._replay_backward()
        sizes = [0 if shape is None else shape.numel() for shape in self._shapes]
        # A copy, because optimizers and accumulation keep what they are given.
        parts = self._gradients[: sum(sizes)].clone().split(sizes)
        return [
            None if shape is None else part.view(shape)
            for part, shape in zip(parts, self._shapes, strict=True)
        ]

    @property
    def constant_outputs(self) -> list[int]:
        """Places of the outputs that depend on no parameter that trains."""
        return [i for i in range(len(self._outputs)) if i not in self._differentiable]

    def _forward(self) -> list[Tensor]:
        found = self._run(self._input)
        self._differentiable = [i for i, output in enumerate(found) if output.requires_grad]
        self._live = [found[i] for i in self._differentiable]
        if not self._grads:
            self._grads = [torch.zeros_like(output) for output in self._live]
        return [output.detach() for output in found]

    def _backward(self) -> list[Tensor]:
        found = torch.autograd.grad(self._live, self._parameters, self._grads, allow_unused=True)
        self._live = []
        self._shapes = [None if grad is None else grad.shape for grad in found]
        flat = [grad.flatten() for grad in found if grad is not None]
        total = sum(grad.numel() for grad in flat)
        torch.cat(flat, out=self._gradients[:total])
        return []


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, recorded, in_flight, x, *parameters):
        ctx.recorded, ctx.in_flight = recorded, in_flight
        ctx.set_materialize_grads(False)
        outputs = recorded.forward(x)
        ctx.mark_non_differentiable(*(outputs[i] for i in recorded.constant_outputs))
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        if ctx.in_flight is None:
            raise RuntimeError(
                "a replayed pass has one backward pass: without CUDA graphs it may have several"
            )
        found = ctx.recorded.backward(grads)
        ctx.in_flight = None
        return None, None, None, *found


class _Form:
    """The form of what a pass returns: a tensor, or a dict of tensors."""

    names: tuple[str, ...] | None = None

    def parts(self, outputs: Outputs) -> list[Tensor]:
        """The tensors of outputs, whose form is remembered."""
        if isinstance(outputs, Tensor):
            return [outputs]
        self.names = tuple(outputs)
        return list(outputs.values())

    def whole(self, parts: Sequence[Tensor]) -> Outputs:
        """Outputs of the form that was seen last."""
        return parts[0] if self.names is None else dict(zip(self.names, parts, strict=True))


def _flattened(
    forward: Callable[[Tensor], Outputs],
) -> tuple[_Form, Callable[[Tensor], list[Tensor]]]:
    form = _Form()
    return form, lambda x: form.parts(forward(x))


def _warm_up(run: Callable[[], Any]) -> None:
    """Runs what is to be recorded, beside the stream of other work as a recording is."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(stream)


def _record(run: Callable[[], list[Tensor]], pool: Any) -> tuple[Callable[[], None], list[Tensor]]:
    """Records what ``run`` launches: a function that launches it again, and the outputs."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        outputs = run()
    return graph.replay, outputs


def renew_generator(device: torch.device) -> bool:
    """Replaces a GPU's generator of random numbers if a recording that failed has left it unusable.

    PyTorch leaves it waiting for the end of that recording, and then refuses to draw.

    Returns:
        whether it was so.
    """
    generator = torch.cuda.default_generators[device.index]
    state = torch.cuda.get_rng_state(device)
    try:
        torch.empty(1, device=device).uniform_()
        return False
    except RuntimeError:
        fresh = torch.Generator(device)
        generator.graphsafe_set_state(fresh.graphsafe_get_state())
        return True
    finally:
        torch.cuda.set_rng_state(state, device)


def _same_autocast(x: Tensor) -> torch.autocast:
    """The surrounding autocast without its cache of weights, which would hold a graph's memory."""
    kind = x.device.type
    dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    return torch.autocast(kind, dtype, enabled=enabled, cache_enabled=False)


def _indices(x: Tensor) -> list[int]:
    return [x.device.index] if x.is_cuda else []


def _nbytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
