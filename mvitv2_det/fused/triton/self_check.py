"""Whether the kernels compile and compute on this device, tried once before they are trusted.

Drivers, versions of Triton and GPUs are many more than the tests have seen. Where the kernels do
not compile, or are wrong, PyTorch's own operations run, and a log line says why.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ...attention.position import relative_embedding
from ..head_pool import HeadPool
from ..sdpa import windowed_sdpa
from ..shape import AttentionShape
from ..tokens import SkipSum
from . import norm_gelu
from .axis_tables import AxisTable
from .triton_attention import triton_attention

# Largest relative error of a tensor in the 2-norm, at least twice that of correct rounding.
_TOLERANCE = {torch.float16: 5e-3, torch.bfloat16: 4e-2, torch.float32: 1e-5, torch.float64: 1e-8}
_HEADS, _SIZE = 2, (9, 5)  # strips of pooling have 8 rows
# Queries along the sides of a window; keys are half as many.
_WINDOWS = {
    "windowed attention": (4, 4),
    "windowed attention (28×28 keys)": (56, 56),
    "global attention": _SIZE,
}


@cache
def fault(device: torch.device, dtype: torch.dtype, channels: int) -> str | None:
    """Says what is wrong with the kernels on a device in a dtype; None where nothing is.

    They are tried with heads of ``channels`` channels, since those for another number are others.
    Takes as long as Triton compiles, seconds; Triton saves what it compiled on disk.
    """
    try:
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            torch.manual_seed(0)
            errors = {"LayerNorm and GELU": _norm_gelu_error(device, dtype)}
            for name, window in _WINDOWS.items():
                errors[name] = _attention_error(device, dtype, channels, window)
    except Exception as error:  # whatever a compiler, a driver or a launch raises
        return f"its kernels do not run on {device}: {' '.join(str(error).split())[:200]}"
    for name, error in errors.items():
        if not error < _TOLERANCE[dtype]:
            return f"its {name} kernels err by {error:.1e} of the norm on {device}"
    return None


def _norm_gelu_error(device: torch.device, dtype: torch.dtype) -> float:
    x, weight, bias, grad = (
        torch.randn(shape, device=device, dtype=dtype).requires_grad_()
        for shape in ((40, 96), (96,), (96,), (40, 96))
    )
    normed, mean, rstd = norm_gelu.layer_norm_forward(x, weight, bias, 1e-6, dtype)
    *of_gelu, partial = norm_gelu.gelu_backward(x, grad, "none")
    given = grad, x, mean, rstd, weight, True, grad, SkipSum(), partial
    found = [normed, *norm_gelu.layer_norm_backward(*given), *of_gelu]
    exact = grad.double()
    plain = F.layer_norm(x.double(), (96,), weight.double(), bias.double(), 1e-6)
    of_x, *of_parameters = torch.autograd.grad(plain, (x, weight, bias), exact)
    hidden = F.gelu(x.double())
    (slope,) = torch.autograd.grad(hidden, x, exact)
    wanted = [plain, of_x + exact, *of_parameters, exact.sum(0), slope.double().sum(0)]
    return _largest_error(found, [*wanted, hidden, slope])


def _attention_error(
    device: torch.device, dtype: torch.dtype, channels: int, window_q: tuple[int, int]
) -> float:
    """Error of the output and all gradients, against plain operations in float64."""
    window_kv = tuple(-(-side // 2) for side in window_q)
    shape = AttentionShape(_HEADS, channels**-0.5, window_q, window_kv, residual=True)
    sides = list(zip(window_q, window_kv, strict=True))
    # Tables for another grid, which are resized, in float32 at least, as under autocast.
    tables = [(2 * max(side) + 1, channels) for side in sides]
    shapes = [(1, *_SIZE, 3 * _HEADS * channels), *tables]
    pool = [(channels, 1, 3, 3), (channels,), (channels,)]
    shapes += [*pool, *pool[:2], *pool, shapes[0][-1:]]
    tensors = [torch.randn(shape) for shape in shapes]
    # Logits of about 1, as a model has: rounding of larger ones saturates the softmax' gradients.
    tensors[1:3] = [channels**-0.5 * table for table in tensors[1:3]]
    tensors[-1].zero_()  # the projection's bias, which it contains already
    types = [dtype, *[torch.promote_types(dtype, torch.float32)] * 2, *[dtype] * (len(shapes) - 3)]
    leaves = [x.to(device, own).requires_grad_() for x, own in zip(tensors, types, strict=True)]
    doubles = [leaf.detach().cpu().double().requires_grad_() for leaf in leaves]
    qkv, *own, parameters, bias = *leaves[:3], leaves[3:-1], leaves[-1]
    rel = [AxisTable.of(table, *side) for table, side in zip(own, sides, strict=True)]
    found = triton_attention(qkv, _pools(parameters), rel, shape, bias=bias)
    qkv, *own, parameters = doubles[0] + doubles[-1], *doubles[1:3], doubles[3:-1]
    embeddings = [relative_embedding(table, *side) for table, side in zip(own, sides, strict=True)]
    wanted = _plain_attention(qkv, _pools(parameters), *embeddings, shape)
    grad = torch.randn(found.shape).to(found)
    return _largest_error(
        [found, *torch.autograd.grad(found, leaves, grad)],
        [wanted, *torch.autograd.grad(wanted, doubles, grad.cpu().double())],
    )


def _plain_attention(
    qkv: Tensor, pools: tuple[HeadPool, ...], rel_h: Tensor, rel_w: Tensor, shape: AttentionShape
) -> Tensor:
    """What the kernels compute, by PyTorch's own operations: (B, H, W, 3·C) to (B, H', W', C)."""
    q, k, v = (pool(part) for pool, part in zip(pools, qkv.chunk(3, -1), strict=True))
    return windowed_sdpa(q, k, v, (rel_h, rel_w), shape) + q


def _pools(parameters: list[Tensor]) -> tuple[HeadPool, ...]:
    """Pools of q, k and v; k's norm has no bias.

    It would add the same to all logits of a query: its gradient is 0, and has no relative error.
    """
    of_q, of_k, of_v = parameters[:3], [*parameters[3:5], None], parameters[5:]
    return tuple(
        HeadPool(_HEADS, (stride, stride), (1, 1), 1e-6, *own)
        for stride, own in zip((1, 2, 2), (of_q, of_k, of_v), strict=True)
    )


def _largest_error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Largest relative error of a tensor, in the 2-norm; infinite where anything is NaN."""
    pairs = [
        (a.detach().cpu().double(), b.detach().cpu()) for a, b in zip(found, wanted, strict=True)
    ]
    errors = torch.stack([(a - b).norm() / b.norm() for a, b in pairs])
    return errors.nan_to_num(float("inf")).max().item()
