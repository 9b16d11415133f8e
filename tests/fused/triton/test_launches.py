"""How many kernels MViTv2-T asks a GPU for, counted without one.

On the meta device nothing is computed. Operations are counted below autograd, those that only
make views or allocate left out; Triton's kernels are counted where they would be launched. Where
this first counted 298 kernels, and 1,402 in a step, the profile of an H100 had 313 and 1,398:
matrix products whose sums are split take two kernels, and convolutions some that change layouts.
"""

from collections import Counter
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", minversion="3.4", reason="the kernels need Triton 3.4")

from mvitv2_det import VARIANTS, MViT, constant_weights
from mvitv2_det.fused.block import FusedBlock
from mvitv2_det.fused.choice import TRITON, Choice
from mvitv2_det.fused.triton import norm_gelu

SIZE = (800, 1088)
_NO_LAUNCH = {
    "_unsafe_view", "alias", "as_strided", "detach", "device", "empty", "empty_like", "expand",
    "new_empty", "permute", "select", "slice", "split", "split_with_sizes", "squeeze", "t",
    "transpose", "unbind", "promote_types", "unsqueeze", "view",
}  # fmt: skip
# Operations of several kernels: the sort of an indexed gradient, and gradients of parameters.
_SEVERAL = {
    "index_put": 9,
    "native_layer_norm_backward": 2,
    "convolution_backward": 3,
    "max_pool2d_with_indices_backward": 2,
}


class Launches(TorchDispatchMode):
    """Counts kernels by the name of their operation."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        if name not in _NO_LAUNCH:
            self.by_name[name] += _SEVERAL.get(name, 1)
        found = func(*args, **(kwargs or {}))
        if name == "convolution":  # cuDNN's result lies as its input, the meta device's does not
            return torch.empty_like(found, memory_format=torch.channels_last)
        return found


class Autocast(TorchFunctionMode):
    """Autocast to bfloat16 of the plain modules, which the meta device does not have."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        dtype = {torch.conv2d: torch.bfloat16, F.layer_norm: torch.float32}.get(func)
        if dtype is not None:
            args = [x.to(dtype) if isinstance(x, Tensor) else x for x in args]
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launches(monkeypatch):
    """Counts launches under autocast, with the Triton kernels chosen for all blocks."""
    found = Launches()

    def launcher(kernel, grid):
        def launch(*args, **kwargs):
            found.by_name[f"triton {kernel.fn.__name__}"] += 1

        return launch

    # By kernel[grid]: the interpreter of Triton 3.4 has no method named run.
    monkeypatch.setattr(type(norm_gelu._norm_forward), "__getitem__", launcher)
    monkeypatch.setattr(FusedBlock, "choose", lambda *_: Choice(TRITON, norm_gelu))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda *_: torch.bfloat16)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    return found


def backbone(name: str) -> MViT:
    with torch.device("meta"):
        return MViT(**VARIANTS[name].backbone_arguments() | {"drop_path_rate": 0.0})


def infer(model: nn.Module) -> None:
    with torch.no_grad(), Autocast():
        model.eval()(torch.empty(1, 3, *SIZE, device="meta"))


def step(model: nn.Module) -> None:
    """A training step but for the optimizer."""
    with Autocast():
        features = model.train()(torch.empty(1, 3, *SIZE, device="meta"))
    sum(feature.float().square().mean() for feature in features.values()).backward()
    model.zero_grad(set_to_none=True)


def has_wide_products() -> bool:
    """Whether the meta device multiplies bfloat16 into float32: not with torch 2.8."""
    x = torch.empty(2, 2, device="meta", dtype=torch.bfloat16)
    try:
        torch.mm(x, x, out_dtype=torch.float32)
    except TypeError:
        return False
    return True


@pytest.mark.parametrize(
    ("name", "run", "most"),
    [
        ("T", infer, 119),
        ("T", step, 488),
        pytest.param("B", infer, 259, marks=pytest.mark.long),
        pytest.param("B", step, 1022, marks=pytest.mark.long),
    ],
)
def test_launches(launches, name, run, most):
    if run is step and not has_wide_products():
        pytest.skip("this torch has no out_dtype on the meta device")
    model = backbone(name)
    with constant_weights(model):  # passes with gradients take no notice
        run(model)  # makes what is kept of the weights and for a size
        launches.by_name.clear()
        with launches:
            run(model)
    counted = launches.by_name.total()
    assert 0.9 * most < counted <= most, launches.by_name.most_common()
