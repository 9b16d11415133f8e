"""Matrix products, each by the faster of the libraries that PyTorch multiplies with on a CPU.

PyTorch's own products are MKL's, and MKL takes no AVX-512 on AMD's CPUs: oneDNN's are up to 2.4
times as fast there (``docs/speed.md``). Elsewhere, all but linear layers are what PyTorch takes by
itself.

Axes: m × k and k × n matrices, N pairs of them; t tokens of C channels in, O channels out.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..processor import capabilities, multiplies_bfloat16

# Multiplications for each thread from which a call of oneDNN is faster than MKL, also for each pair
# where MKL takes all in one call; more where the first matrix is transposed. Measured on Zen 5.
_WORTH_A_CALL, _TRANSPOSED_WORTH_A_CALL = 5_000_000, 10_000_000
# Below so many, a product whose first matrix is transposed is faster as its transpose.
_FEW_COLUMNS = 256


def dense(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """Activation of a linear layer, (t, C) to (t, O), without gradients.

    On a CPU oneDNN's product is at least as fast as the one that ``F.linear`` takes, and it
    computes the activation before the result leaves the cache.

    Args:
        activation: ``none``, ``gelu`` or ``gelu_tanh``.
    """
    plain = type(x) is Tensor and x.device.type == "cpu"
    if plain and _has_onednn(x.dtype):
        kind, _, algorithm = activation.partition("_")
        options: tuple[list[float], str]
        options = ([], algorithm or "none") if kind == "gelu" else ([], "")
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, kind, *options)
    x = F.linear(x, weight, bias)
    if activation == "none":
        return x
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def added_product(total: Tensor | None, a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """``total`` with ``a @ b`` added in place, in ``dtype``; ``a @ b`` where there is no total."""
    if _takes_onednn(a, b):
        product = _onednn_product(a, b)
        return product.contiguous() if total is None else total.add_(product)
    if total is not None and dtype == a.dtype:
        return total.addmm_(a, b)
    return added(total, _product(a, b, dtype))


def write_products(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Writes ``a @ b`` of (N, m, k) and (N, k, n) to ``out``."""
    if not _takes_onednn(a, b):
        torch.bmm(a, b, out=out)
        return
    for one, other, target in zip(a, b, out, strict=True):
        target.copy_(_onednn_product(one, other))


def add_products(total: Tensor, a: Tensor, b: Tensor, beta: int = 1) -> None:
    """Adds ``a @ b`` of (N, m, k) and (N, k, n) to ``beta * total``, in place.

    Args:
        beta: 1, or 0 to write over what is there.
    """
    if not _takes_onednn(a, b):
        total.baddbmm_(a, b, beta=beta)
    elif beta == 0:
        write_products(a, b, total)
    else:
        for one, other, target in zip(a, b, total, strict=True):
            target.add_(_onednn_product(one, other))


def column_sums(x: Tensor) -> Tensor:
    """(t, O) to (O), in float32 at least: the gradient of a bias."""
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64):
        return x.new_ones(len(x)) @ x  # twice as fast as a sum
    return x.sum(0, dtype=torch.promote_types(x.dtype, torch.float32))


def added(total: Tensor | None, part: Tensor) -> Tensor:
    """``total`` with ``part`` added in place; ``part`` where there is no total yet."""
    return part if total is None else total.add_(part)


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """``a @ b`` in ``dtype``; NVIDIA's GPUs write float32 sums of 16-bit products."""
    nvidia = (a.is_cuda and torch.version.hip is None) or a.is_meta
    if nvidia and dtype == torch.float32 and a.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(a, b, out_dtype=dtype)
    return torch.mm(a, b).to(dtype)


def _onednn_product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of (m, k) and (k, n); its transpose is computed where that is faster."""
    if _is_transposed(a) and b.shape[1] < min(len(a), _FEW_COLUMNS):
        return dense(b.T, a, None).T
    return dense(a, b.T, None)


def _is_transposed(a: Tensor) -> bool:
    return a.stride(-2) == 1 != a.stride(-1)


def _takes_onednn(a: Tensor, b: Tensor) -> bool:
    """Whether ``a @ b`` of (m, k) and (k, n), or of each of N pairs, is oneDNN's."""
    if type(a) is not Tensor or a.device.type != "cpu" or a.dtype != torch.float32:
        return False
    return _outruns_mkl() and _has_onednn(a.dtype) and _is_worth_a_call(a, b)


def _is_worth_a_call(a: Tensor, b: Tensor) -> bool:
    worth = _TRANSPOSED_WORTH_A_CALL if _is_transposed(a) else _WORTH_A_CALL
    return a.shape[-2] * a.shape[-1] * b.shape[-1] >= worth * torch.get_num_threads()


@cache
def _outruns_mkl() -> bool:
    """Whether oneDNN takes AVX-512 where MKL does not; with AVX2 alone it is not ahead."""
    able = capabilities()
    return bool(able.get("avx512_f")) and "AMD" in str(able.get("cpu_name"))


@cache
def _has_onednn(dtype: torch.dtype) -> bool:
    if dtype != torch.float32 and not (dtype == torch.bfloat16 and multiplies_bfloat16()):
        return False
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
