"""Models too large for each GPU to hold whole with its gradients and optimizer: PyTorch's FSDP2.

Each process keeps a part of every parameter, and has the others' parts while a block is computed.
Checkpoints hold whole tensors, so that they do not depend on the number of processes, nor on
whether the model was sharded.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..backbone.block import MultiScaleBlock


def shard(model: nn.Module) -> nn.Module:
    """Shards each block of the backbone, and the rest of the model, over all processes, in place.

    The processes must hold the same weights.
    """
    device = next(model.parameters()).device.type
    mesh = dist.init_device_mesh(device, (dist.get_world_size(),))
    for module in model.modules():
        if isinstance(module, MultiScaleBlock):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def is_sharded(model: nn.Module) -> bool:
    """Whether :func:`shard` was called with the model."""
    return isinstance(model, FSDPModule)


@contextmanager
def whole_parameters(model: nn.Module) -> Iterator[None]:
    """Lets each process have all parameters for a while, such as an evaluation.

    Otherwise a process with one image less than the others would leave them waiting for its part.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)


def gathered(content: Any) -> Any:
    """Puts whole tensors, on the CPU, in place of sharded ones, in dicts, lists and tuples.

    All processes must call it with the same structure; they wait for each other.
    """
    return _replaced(content, lambda tensor: tensor.full_tensor().cpu())


def load_model(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Loads whole weights into a model, of which each parameter may be sharded.

    Raises:
        RuntimeError: they are not those of the model.
    """
    own = model.state_dict()
    model.load_state_dict({name: _like(own.get(name), one) for name, one in weights.items()})


def sharded_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """Shards the whole tensors of an optimizer's state as the parameters that they belong to are.

    Args:
        optimizer: of the model, sharded or not.
        state: what its ``state_dict`` gave, of :func:`gathered`.
    """
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    by_number = {
        number: {
            key: _like(parameters[number], value)
            if _same_shape(parameters[number], value)
            else value
            for key, value in values.items()
        }
        for number, values in state["state"].items()
    }
    return {**state, "state": by_number}


def _same_shape(parameter: Tensor, value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape == parameter.shape


def _like(own: Tensor | None, whole: Tensor) -> Tensor:
    """Shards a tensor as another one is; each process has all of it, so none sends anything."""
    if not isinstance(own, DTensor) or isinstance(whole, DTensor):
        return whole
    whole = whole.to(own.device)
    return distribute_tensor(whole, own.device_mesh, own.placements, src_data_rank=None)


def _replaced(content: Any, replace: Callable[[DTensor], Tensor]) -> Any:
    if isinstance(content, DTensor):
        return replace(content)
    if isinstance(content, Mapping):
        return {key: _replaced(value, replace) for key, value in content.items()}
    if type(content) in (list, tuple):
        return type(content)(_replaced(value, replace) for value in content)
    return content
