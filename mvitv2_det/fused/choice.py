"""What computes attention, by name. All give the same outputs and gradients.

``reference`` is the plain path; ``strips`` is made for the CPU, ``triton`` for NVIDIA GPUs,
``sdpa`` for GPUs of any kind. ``auto`` takes the first that is meant for the device and can run
the module. Parameters and checkpoints do not depend on the backend.
"""

import logging
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .cpu.folded_pooling import folded_projection, pays
from .cpu.row_tiles import attention_by_rows
from .cpu.tiled_attention import pooled_attention
from .cpu.tiles import Layout
from .head_pool import HeadPool
from .norm_linear import compute_dtype, normed_linear, normed_product
from .norm_linear import why_not as normed_linear_why_not
from .residual_linear import Skip, project
from .sdpa import windowed_sdpa
from .triton import available

if TYPE_CHECKING:
    from ..attention.multiscale import MultiScaleAttention

AUTO = "auto"
REFERENCE = "reference"
_log = logging.getLogger(__name__)


class AttentionBackend(Protocol):
    """One way to compute attention.

    Attributes:
        name: what users call it.
        automatic_on: types of devices that it is the fastest on, where it can run.
    """

    name: str
    automatic_on: Sequence[str]

    def why_not(self, attention: "MultiScaleAttention", x: Tensor) -> str | None:
        """Why it cannot run the module on ``x`` (B, H, W, C_in); None where it can."""

    def run(
        self, attention: "MultiScaleAttention", x: Tensor, norm: nn.Module, skip: Skip | None
    ) -> Tensor:
        """All of the module: norm, projection, pooling, attention, residual, projection, skip."""


class Reference:
    """Plain operations, for every module and device."""

    name = REFERENCE
    automatic_on = ("cpu", "cuda", "meta")

    def why_not(self, attention: "MultiScaleAttention", x: Tensor) -> str | None:
        return None

    def run(
        self, attention: "MultiScaleAttention", x: Tensor, norm: nn.Module, skip: Skip | None
    ) -> Tensor:
        output = attention.reference(norm(x))
        return output if skip is None else skip.add(output)


class Strips:
    """Strips of query rows that stay in the cache of a CPU, with little kept for backward."""

    name = "strips"
    automatic_on = ("cpu",)

    def why_not(self, attention: "MultiScaleAttention", x: Tensor) -> str | None:
        if x.device.type != "cpu":
            return f"it is made for the CPU, got tensors on {x.device.type}"
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return "its own gradients cannot be compiled or exported"
        if torch.is_autocast_enabled("cpu"):
            return "it has no mixed precision, and autocast is on"
        if x.dtype not in (torch.float32, torch.float64):
            return f"it computes in float32 or float64, got {x.dtype}"
        return _unknown_parts(attention)

    def run(
        self, attention: "MultiScaleAttention", x: Tensor, norm: nn.Module, skip: Skip | None
    ) -> Tensor:
        pools, windows = _pools_and_windows(attention, x)
        layout = Layout(attention.num_heads, attention.scale, *windows, attention.residual_pooling)
        embeddings = _embeddings(attention, *windows)
        if not torch.is_grad_enabled() and normed_linear_why_not(x, norm) is None:
            return attention_by_rows(
                x, norm, attention.qkv, pools, embeddings, layout, attention.proj, skip
            )
        if normed_linear_why_not(x, norm) is None and pays(pools[1:]):
            maps, pools = self._folded(x, norm, attention.qkv, pools)
        else:
            maps = normed_linear(x, norm, attention.qkv, parts=3)
        z = pooled_attention(maps, pools, embeddings, layout)
        return project(z, attention.proj, skip)

    @staticmethod
    def _folded(x: Tensor, norm: nn.LayerNorm, qkv: nn.Linear, pools: Sequence[HeadPool]) -> tuple:
        """Projected q, convolved k and v, and what is left to pool of them."""
        ends = [qkv.out_features // 3, qkv.out_features - qkv.out_features // 3]
        weight_q, weight_kv = qkv.weight.split(ends)
        bias_q, bias_kv = (None, None) if qkv.bias is None else qkv.bias.split(ends)
        q = normed_product(x, norm, weight_q, bias_q)
        k, v = folded_projection(x, norm, weight_kv, bias_kv, pools[1:])
        return (q, k, v), (pools[0], *(pool.after_convolution() for pool in pools[1:]))


class Triton:
    """Kernels of :mod:`mvitv2_det.fused.triton`: pooling in one, and attention in one."""

    name = "triton"
    automatic_on = ("cuda",)

    def why_not(self, attention: "MultiScaleAttention", x: Tensor) -> str | None:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return "its own gradients cannot be compiled or exported"
        if x.is_meta:
            return "operations are counted one by one on the meta device"
        if reason := _unknown_parts(attention, masked_padding=True):
            return reason
        if reason := available.why_not(x.device, compute_dtype(x)):
            return reason
        from .triton import pooled_attention as kernels

        pools, shape = self._pools_and_shape(attention, x)
        channels = attention.proj.out_features // attention.num_heads
        return kernels.why_not(channels, pools, shape)

    def run(
        self, attention: "MultiScaleAttention", x: Tensor, norm: nn.Module, skip: Skip | None
    ) -> Tensor:
        from .triton import pooled_attention as kernels

        pools, shape = self._pools_and_shape(attention, x)
        embeddings = _embeddings(attention, shape.window_q, shape.window_kv)
        (qkv,) = normed_linear(x, norm, attention.qkv)
        z = kernels.pooled_attention(qkv, pools, embeddings, shape)
        return project(z, attention.proj, skip)

    @staticmethod
    def _pools_and_shape(attention: "MultiScaleAttention", x: Tensor) -> tuple:
        from .triton.attention import AttentionShape

        pools, windows = _pools_and_windows(attention, x)
        shape = AttentionShape(
            attention.num_heads,
            attention.scale,
            *windows,
            attention.residual_pooling,
            attention.mask_window_padding and attention.window_size > 0,
        )
        return pools, shape


class Sdpa:
    """One call of PyTorch's fused attention; position terms are further channels of q and k."""

    name = "sdpa"
    automatic_on = ("cuda", "cpu")

    def why_not(self, attention: "MultiScaleAttention", x: Tensor) -> str | None:
        if x.is_meta:
            return "operations are counted one by one on the meta device"
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            return "what is exported takes images of any size by plain operations alone"
        if x.device.type == "cpu" and torch.compiler.is_compiling():
            return "compiled for the CPU it fails on the layout of its output"
        return _unknown_parts(attention)

    def run(
        self, attention: "MultiScaleAttention", x: Tensor, norm: nn.Module, skip: Skip | None
    ) -> Tensor:
        maps = normed_linear(x, norm, attention.qkv, parts=3)
        pools, windows = _pools_and_windows(attention, x)
        embeddings = _embeddings(attention, *windows)

        def attend(q: Tensor, k: Tensor, v: Tensor, *embeddings: Tensor) -> Tensor:
            q, k, v = (
                pool.run(tensor, *pool.parameters)
                for tensor, pool in zip((q, k, v), pools, strict=True)
            )
            z = windowed_sdpa(q, k, v, embeddings, attention.num_heads, attention.scale, *windows)
            return z + q if attention.residual_pooling else z

        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # Pooled, normalised and widened maps are many, and cheap to compute again.
            z = checkpoint(
                attend, *maps, *embeddings, use_reentrant=False, preserve_rng_state=False
            )
        else:
            z = attend(*maps, *embeddings)
        return project(z, attention.proj, skip)


_BACKENDS: dict[str, AttentionBackend] = {
    backend.name: backend for backend in (Strips(), Triton(), Sdpa(), Reference())
}


def names() -> tuple[str, ...]:
    """The names that ``attention_backend`` takes."""
    return (AUTO, *_BACKENDS)


def check_name(name: str) -> None:
    """Raises ValueError where there is no such backend."""
    if name not in names():
        raise ValueError(f"attention_backend must be one of {', '.join(names())}, got {name!r}")


def choose(name: str, attention: "MultiScaleAttention", x: Tensor) -> AttentionBackend:
    """The backend of that name, or the fastest one that can run the module on ``x``.

    Raises:
        ValueError: there is no such backend, or it cannot run the module on ``x``.
    """
    check_name(name)
    if name != AUTO:
        if reason := _BACKENDS[name].why_not(attention, x):
            raise ValueError(f"attention_backend {name!r} cannot run here: {reason}")
        return _BACKENDS[name]
    for backend in _BACKENDS.values():
        if x.device.type in backend.automatic_on:
            reason = backend.why_not(attention, x)
            if reason is None:
                return backend
            if not torch.compiler.is_compiling():  # it would break the graph
                _say_once(backend.name, reason)
    return _BACKENDS[REFERENCE]


@cache
def _say_once(name: str, reason: str) -> None:
    _log.info("attention backend %s is not taken: %s", name, reason)


def _unknown_parts(attention: "MultiScaleAttention", *, masked_padding: bool = False) -> str | None:
    """Why the fast paths, which take modules apart, cannot compute what this one consists of.

    Args:
        masked_padding: whether the path can hide the padding of windows.
    """
    for part in ("qkv", "proj"):
        if type(getattr(attention, part)) is not nn.Linear:
            kind = type(getattr(attention, part)).__name__
            return f"{part} must be a plain linear layer, got {kind}"
    if attention.shift:
        return "its windows are shifted"
    if attention.mask_window_padding and attention.window_size and not masked_padding:
        return "the padding of its windows is masked"
    if attention.rel_pos_terms and attention.rel_pos_kind != "decomposed":
        return f"its relative positions are {attention.rel_pos_kind}, not decomposed"
    if attention.rel_pos_terms not in ((), ("q",)):
        return f"its relative positions are on {', '.join(attention.rel_pos_terms)}, not on q alone"
    for part in ("q", "k", "v"):
        pool, norm = getattr(attention, f"pool_{part}"), getattr(attention, f"norm_{part}")
        if pool is None:
            continue
        if type(pool) is not nn.Conv2d or pool.bias is not None:
            return f"pool_{part} must be a convolution without bias, got {type(pool).__name__}"
        if type(norm) is not nn.LayerNorm:
            return f"norm_{part} must be a LayerNorm, got {type(norm).__name__}"
    return None


def _pools(attention: "MultiScaleAttention") -> tuple[HeadPool, HeadPool, HeadPool]:
    heads = attention.num_heads
    return (
        HeadPool.of(attention.pool_q, attention.norm_q, heads),
        HeadPool.of(attention.pool_k, attention.norm_k, heads),
        HeadPool.of(attention.pool_v, attention.norm_v, heads),
    )


def _pools_and_windows(
    attention: "MultiScaleAttention", x: Tensor
) -> tuple[tuple[HeadPool, ...], tuple[tuple[int, int], tuple[int, int]]]:
    """What pools q, k and v, and the windows' height and width in queries and in keys: those of
    the whole maps without windows.
    """
    pools, window = _pools(attention), attention.window_size
    if window:
        strides = (attention.stride_q, attention.stride_kv)
        return pools, tuple((window // stride,) * 2 for stride in strides)
    return pools, tuple(pool.output_size(x.shape[1:3]) for pool in pools[:2])


def _embeddings(
    attention: "MultiScaleAttention", window_q: tuple[int, int], window_kv: tuple[int, int]
) -> tuple[Tensor, ...]:
    """R of Eq. 4 per axis, (Q_a, K_a, d); empty without relative positions."""
    from ..attention.position import relative_embedding

    return tuple(
        relative_embedding(table, queries, keys)
        for table, queries, keys in zip(
            attention.position_tables(), window_q, window_kv, strict=False
        )
    )
