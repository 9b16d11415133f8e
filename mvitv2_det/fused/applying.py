"""Autograd functions in passes without gradients."""

from typing import Any

import torch


class _NoContext:
    """What forward is given where no backward follows: keeps nothing that it is asked to."""

    def save_for_backward(self, *tensors: Any) -> None:
        pass


def applied(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """``function.apply(*arguments)``; without gradients its forward alone.

    Autograd's part of a call takes the host two microseconds, four times a block, and at
    batch 1 the host is what a GPU waits for.
    """
    if torch.is_grad_enabled():
        return function.apply(*arguments)
    return function.forward(_NoContext(), *arguments)
