"""Whether the kernels compile and compute on this device, tried once before they are trusted.

Drivers, versions of Triton and GPUs are many more than the tests have seen. Where the kernels do
not compile, or are wrong, PyTorch's own operations run, and a log line says why.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cpu.tiled import pool_and_attend as plain_attention
from ..head_pool import HeadPool
from . import tokens
from .attention import AttentionShape
from .pooled_attention import pooled_attention

_TOLERANCE = {torch.float16: 5e-2, torch.bfloat16: 3e-1, torch.float32: 1e-3, torch.float64: 1e-8}
_HEADS, _CHANNELS, _SIZE, _WINDOW = 2, 24, (10, 9), 8


@cache
def fault(device: torch.device, dtype: torch.dtype) -> str | None:
    """What is wrong with the kernels on a device in a type; None where nothing is.

    Takes as long as Triton compiles, seconds; Triton keeps what it compiled on disk.
    """
    try:
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            torch.manual_seed(0)
            errors = {
                "LayerNorm": _layer_norm_error(device, dtype),
                "attention": _attention_error(device, dtype),
            }
    except Exception as error:  # whatever a compiler, a driver or a launch raises
        return f"its kernels do not run on {device}: {' '.join(str(error).split())[:200]}"
    for name, error in errors.items():
        if not error < _TOLERANCE[dtype]:
            return f"its {name} is wrong by {error:.1e} of its largest value on {device}"
    return None


def _layer_norm_error(device: torch.device, dtype: torch.dtype) -> float:
    x, weight, bias, grad = (
        torch.randn(shape, device=device, dtype=dtype).requires_grad_()
        for shape in ((40, 72), (72,), (72,), (40, 72))
    )
    normed, mean, rstd = tokens.layer_norm_forward(x, weight, bias, 1e-6, dtype)
    ours = [normed, *tokens.layer_norm_backward(grad, x, mean, rstd, weight, True)]
    hidden, slope, _ = tokens.gelu_backward(x, grad, "none")
    plain = F.layer_norm(x.double(), (72,), weight.double(), bias.double(), 1e-6)
    plain_hidden = F.gelu(x.double())
    theirs = [
        plain,
        *torch.autograd.grad(plain, (x, weight, bias), grad.double()),
        plain_hidden,
        *torch.autograd.grad(plain_hidden, x, grad.double()),
    ]
    return _largest_error([*ours, hidden, slope], theirs)


def _attention_error(device: torch.device, dtype: torch.dtype) -> float:
    """Of outputs and all gradients, against the plain path for the CPU in float64."""
    inner = _HEADS * _CHANNELS
    window_kv = _WINDOW // 2
    embedding, pool = (_WINDOW, window_kv, _CHANNELS), ((_CHANNELS, 1, 3, 3), (_CHANNELS,))
    shapes = [(1, *_SIZE, 3 * inner), embedding, embedding, *((*pool, pool[1]) * 3)]
    leaves = [torch.randn(shape).to(device, dtype).requires_grad_() for shape in shapes]
    doubles = [leaf.detach().cpu().double().requires_grad_() for leaf in leaves]
    options = (_HEADS, _CHANNELS**-0.5, (_WINDOW, _WINDOW), (window_kv, window_kv), True)
    ours = pooled_attention(
        leaves[0], _pools(leaves[3:]), tuple(leaves[1:3]), AttentionShape(*options)
    )
    theirs = plain_attention(
        doubles[0].chunk(3, -1), _pools(doubles[3:]), tuple(doubles[1:3]), AttentionShape(*options)
    )
    grad = torch.randn(ours.shape)
    found = [ours, *torch.autograd.grad(ours, leaves, grad.to(ours))]
    wanted = [theirs, *torch.autograd.grad(theirs, doubles, grad.to(theirs))]
    return _largest_error(found, wanted)


def _pools(parameters: list[Tensor]) -> tuple[HeadPool, ...]:
    return tuple(
        HeadPool(_HEADS, (stride, stride), (1, 1), 1e-6, *parameters[3 * i : 3 * i + 3])
        for i, stride in enumerate((1, 2, 2))
    )


def _largest_error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Over the tensors, the largest difference in units of a tensor's largest value."""
    return max(
        ((a.detach().cpu().double() - b.detach().cpu().double()).abs().max() / b.abs().max().cpu())
        .nan_to_num(float("inf"))
        .item()
        for a, b in zip(found, wanted, strict=True)
    )
