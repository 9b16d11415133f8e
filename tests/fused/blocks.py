"""Small blocks for tests of the fused ones, and how two of them are compared."""

import torch
from models import randomize
from torch import nn

from mvitv2_det.attention.spec import AttentionSpec
from mvitv2_det.backbone.block import MultiScaleBlock
from mvitv2_det.backbone.schedule import BlockSpec
from mvitv2_det.fused import accelerate

TOLERANCE = 1e-4

# One of each kind of block: window and stride that (dis)agree with (9, 14) or (25, 13) tokens.
KINDS = {
    "windows": {"window_size": 8, "stride_kv": 4},
    "strided queries": {"window_size": 8, "stride_q": 2, "stride_kv": 2},
    "more keys than queries": {"window_size": 8, "stride_q": 2},
    "global": {"stride_kv": 2},
    "global, strided queries": {"stride_q": 2, "stride_kv": 4},
    "no positions": {"use_rel_pos": False, "window_size": 4},
    "no residual": {"residual_pooling": False, "stride_kv": 2},
    "no bias": {"qkv_bias": False, "window_size": 4},
    "kernel of 5": {"pool_kernel": (5, 5), "stride_kv": 2},
    "kernel of 1": {"pool_kernel": (1, 1), "stride_kv": 2},
    "no pooling": {"pool_q": False, "pool_kv": False, "residual_pooling": False},
    "no pooling, windows": {"pool_q": False, "pool_kv": False, "window_size": 4},
    "no pooling of queries": {"pool_q": False, "window_size": 8, "stride_kv": 2},
}


def block(backend: str | None, *, act_layer=nn.GELU, **changes) -> MultiScaleBlock:
    """A block with the same random weights whatever its backend; the plain one for None.

    Args:
        changes: fields of AttentionSpec, and ``block_dim_out`` and ``drop_path`` of BlockSpec.
    """
    options = {"dim": 12, "dim_out": 24, "num_heads": 3, "table_size": 14} | changes
    dim_out = options.pop("block_dim_out", options["dim_out"])
    drop_path = options.pop("drop_path", 0.0)
    spec = BlockSpec(2, AttentionSpec(**options), dim_out, drop_path=drop_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = randomize(MultiScaleBlock(spec, act_layer=act_layer))
    if backend is not None:
        accelerate(module, backend)
    return module


def outputs_and_gradients(module: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The output and the gradients of the input and of all parameters."""
    x = x.clone().requires_grad_()
    torch.manual_seed(2)  # the same paths are dropped
    z = module(x)
    generator = torch.Generator().manual_seed(1)
    module.zero_grad()
    (z * torch.randn(z.shape, generator=generator).to(z)).sum().backward()
    gradients = {name: tensor.grad.clone() for name, tensor in module.named_parameters()}
    return {"output": z.detach(), "input": x.grad, **gradients}


def assert_same(actual: dict, expected: dict, tolerance: float = TOLERANCE) -> None:
    """Each tensor to a tolerance relative to its largest value."""
    # A shift of all keys alike changes no attention: where no key is padding, the gradient of
    # norm_k.bias is rounding.
    rounding = 1e-2 * tolerance * max(tensor.abs().max() for tensor in expected.values())
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        difference = (actual[name] - tensor).abs().max()
        assert difference < tolerance * tensor.abs().max() + rounding, name
