"""What computes a block: decided here, once per call of a block, from one set of conditions.

All ways give the same outputs and gradients, and weights do not depend on them. They are known by
the name of their attention:

* ``reference``: the modules of the plain model, for every option and device;
* ``tiled``: tiles that stay in the cache of a CPU; norms, linear layers and MLP fused;
* ``sdpa``: PyTorch's fused attention in the plain block;
* ``triton``: kernels for NVIDIA GPUs; norms, linear layers and MLP fused;
* ``auto``: the fastest of these that is known to be exact and fast on the device. Where a block
  has an option that no fast attention computes, its norms, linear layers and MLP are still fused.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from .. import processor
from ..attention.multiscale import MultiScaleAttention
from ..backbone.block import MultiScaleBlock
from . import attention as paths
from . import tokens
from .attention import FusedAttention
from .tokens import TokenKernels, product_dtype
from .triton import available

AUTO, REFERENCE, TILED, SDPA, TRITON = "auto", "reference", "tiled", "sdpa", "triton"
COMPILED = "compiled"  # not a backend: what compile_blocks() makes of any
BACKENDS = (AUTO, TILED, SDPA, TRITON, REFERENCE)
# What ``auto`` tries on each type of device. The Triton kernels were measured on GPUs of one
# capability with heads of 96 channels (projects/backbone_benchmark/results/gpu); elsewhere they
# run where they are asked for.
_AUTOMATIC = {"cpu": (TILED, SDPA), "cuda": (SDPA,)}
_MEASURED, _MEASURED_DTYPES = ((9, 0), 96), (torch.bfloat16,)
_MEASURED_KEYS = 14  # along a window, in training

_FUSED_ATTENTION: dict[str, FusedAttention] = {
    REFERENCE: paths.reference,
    TILED: paths.tiled,
    SDPA: paths.sdpa,
    TRITON: paths.triton,
}
# Name of a module, the module, and the types that it may have.
Part = tuple[str, nn.Module, tuple[type, ...]]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """What computes a block.

    Attributes:
        attention: name of the attention's backend.
        kernels: operations of the fused norms, linear layers and MLP; None for plain modules.
        compiled: whether compiled code runs, which makes a choice of its own.
        passed_over: (name, reason) of each faster way that cannot compute this block here.
    """

    attention: str
    kernels: TokenKernels | None = None
    compiled: bool = False
    passed_over: tuple[tuple[str, str], ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether the plain model's own forward pass runs."""
        return self.attention == REFERENCE and self.kernels is None and not self.compiled

    def attend(
        self, attention: MultiScaleAttention, x: Tensor, beside: paths.Beside
    ) -> paths.Alone:
        """The attention alone, of normalised tokens."""
        alone = paths.sdpa_alone if self.attention == SDPA else paths.reference_alone
        return alone(attention, x, beside)

    @property
    def fused_attend(self) -> FusedAttention:
        """The function that computes the attention with its norm and skip connection."""
        return _FUSED_ATTENTION[self.attention]

    def __str__(self) -> str:
        if self.compiled:
            return COMPILED
        return self.attention if self.kernels is None else f"{self.attention}, fused norms and MLP"


def check_name(name: str) -> None:
    """Raises ValueError where there is no such backend."""
    if name not in BACKENDS:
        raise ValueError(f"attention_backend must be one of {', '.join(BACKENDS)}, got {name!r}")


def choose(
    block: MultiScaleBlock,
    backend: str,
    x: Tensor,
    *,
    has_token: bool = False,
    has_compiled_code: bool = False,
) -> Choice:
    """What computes ``block`` on tokens ``x`` (B, *axes, C).

    Args:
        backend: what was asked for, one of :data:`BACKENDS`.
        has_token: whether there is a class token beside the map.
        has_compiled_code: whether the block was compiled; compiled code runs wherever no other
            graph is being captured.

    Raises:
        ValueError: the backend that was asked for by name cannot compute it; the message says why.
    """
    beside_images = _what_is_beside_images(x, has_token)
    passed_over: tuple[tuple[str, str], ...] = ()
    if has_compiled_code and not is_capturing():
        if beside_images is None:
            return Choice(backend, compiled=True)
        passed_over = ((COMPILED, beside_images),)
    if backend == AUTO:
        return _fastest(block, x, beside_images, passed_over)
    if backend == REFERENCE:
        return Choice(REFERENCE)
    if reason := _why_not(backend, block, x, _why_not_fused(block, x), beside_images):
        raise ValueError(f"attention_backend {backend!r} cannot run here: {reason}")
    return Choice(backend, _kernels_of(backend) if backend in (TILED, TRITON) else None)


def _what_is_beside_images(x: Tensor, has_token: bool) -> str | None:
    """What kernels for maps of images alone cannot compute; None for those."""
    if x.dim() != 4:
        return "its maps have three axes, as those of clips"
    if has_token:
        return "a class token travels beside its map"
    return None


def is_capturing() -> bool:
    """Whether operations are recorded for a graph: compilation, tracing, export."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _fastest(
    block: MultiScaleBlock,
    x: Tensor,
    beside_images: str | None,
    passed_over: tuple[tuple[str, str], ...],
) -> Choice:
    not_fused = _why_not_fused(block, x)
    for name in _automatic(block, x):
        reason = _why_not(name, block, x, not_fused, beside_images)
        if (reason := reason or _why_not_unasked(name, block, x)) is None:
            break
        passed_over += ((name, reason),)
    else:
        name = REFERENCE
    _say(passed_over)
    return Choice(name, None if not_fused else _kernels_of(name), passed_over=passed_over)


def _why_not_unasked(name: str, block: MultiScaleBlock, x: Tensor) -> str | None:
    """Why a backend that can compute the block is not taken by itself; None where it is."""
    if name == TILED and product_dtype(x) == torch.bfloat16 and not processor.multiplies_bfloat16():
        # It then took 1.05 (AVX-512) and 1.7 times (AVX2) as long as `sdpa`.
        return "PyTorch does not say that this CPU multiplies bfloat16 by itself"
    spec = block.attn.spec
    keys = spec.window_size // spec.stride_kv[0]
    if name == TRITON and keys > _MEASURED_KEYS and torch.is_grad_enabled():
        return (
            f"its gradients with windows of {keys}×{keys} keys were wrong on a GPU in 16 bits; "
            f"since they were changed they have not been measured"
        )
    return None


def _kernels_of(name: str) -> TokenKernels:
    """The norms, linear layers and MLP that go with a backend."""
    if name != TRITON:
        return tokens
    from .triton import norm_gelu

    return norm_gelu


def _automatic(block: MultiScaleBlock, x: Tensor) -> tuple[str, ...]:
    """The names of what ``auto`` tries for a block on tokens ``x``, the fastest first."""
    names = _AUTOMATIC.get(x.device.type, ())
    # The compiler cannot ask a device, and takes none of the kernels.
    if torch.compiler.is_compiling() or x.device.type != "cuda":
        return names
    here = torch.cuda.get_device_capability(x.device), block.attn.spec.head_dim
    is_measured = here == _MEASURED and product_dtype(x) in _MEASURED_DTYPES
    return (TRITON, *names) if is_measured else names


def _why_not(
    name: str, block: MultiScaleBlock, x: Tensor, not_fused: str | None, beside_images: str | None
) -> str | None:
    """Why a backend cannot compute the block; None where it can.

    Args:
        not_fused: the answer of :func:`_why_not_fused`.
        beside_images: the answer of :func:`_what_is_beside_images`.
    """
    if name == SDPA:
        return _why_not_sdpa(block, x)
    if name == TILED:
        return not_fused or _tiled_limits(block, x)
    return beside_images or not_fused or _triton_limits(block, x)


def _say(passed_over: tuple[tuple[str, str], ...]) -> None:
    if not torch.compiler.is_compiling():  # it would break the graph
        for name, reason in passed_over:
            _say_once(name, reason)


@cache
def _say_once(name: str, reason: str) -> None:
    _log.info("attention backend %s is not taken: %s", name, reason)


def _why_not_fused(block: MultiScaleBlock, x: Tensor) -> str | None:
    """Why norms, linear layers and MLP cannot be fused; None where they can."""
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        return "its own gradients cannot be compiled, and the compiler fuses by itself"
    return _why_not_recorded(x) or _why_not_taken_apart(
        [*_parts_of_attention(block), *_other_parts(block)]
    )


def _why_not_sdpa(block: MultiScaleBlock, x: Tensor) -> str | None:
    """Why PyTorch's fused attention cannot compute the block's; None where it can."""
    if torch.compiler.is_compiling() and x.device.type == "cpu":
        return "compiled for the CPU it fails on the layout of its output"
    reason = _why_not_recorded(x) or _why_not_taken_apart(_parts_of_attention(block))
    return reason or _unknown_options(block)


def _why_not_recorded(x: Tensor) -> str | None:
    """Why operations that are counted or exported must be the plain model's."""
    if x.is_meta:
        return "operations are counted one by one on the meta device"
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        return "what is exported takes images of any size by plain operations alone"
    return None


def _why_not_taken_apart(parts: Iterable[Part]) -> str | None:
    """Why modules must be called as they are: replaced, wrapped, or watched by hooks."""
    if (
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    ):
        return "there are hooks for all modules, which run only where a module is called"
    return next((reason for part in parts if (reason := _why_not_part(*part))), None)


def _parts_of_attention(block: MultiScaleBlock) -> Iterator[Part]:
    """What every fast attention takes apart; ``qkv`` and ``proj`` may still be called."""
    attention = block.attn
    yield "attn", attention, (MultiScaleAttention,)
    for name in "qkv":
        if (pool := getattr(attention, f"pool_{name}")) is not None:
            yield f"attn.pool_{name}", pool, (nn.Conv2d, nn.Conv3d)
            yield f"attn.norm_{name}", getattr(attention, f"norm_{name}"), (nn.LayerNorm,)
    yield "drop_path", block.drop_path, (DropPath, nn.Identity)


def _other_parts(block: MultiScaleBlock) -> Iterator[Part]:
    """What fused norms, linear layers and MLP take apart."""
    mlp = block.mlp
    yield "norm1", block.norm1, (nn.LayerNorm,)
    yield "attn.qkv", block.attn.qkv, (nn.Linear,)
    yield "attn.proj", block.attn.proj, (nn.Linear,)
    yield "norm2", block.norm2, (nn.LayerNorm,)
    yield "mlp", mlp, (Mlp,)
    yield "mlp.fc1", mlp.fc1, (nn.Linear,)
    yield "mlp.act", mlp.act, (nn.GELU,)
    yield "mlp.drop1", mlp.drop1, (nn.Dropout,)
    yield "mlp.norm", mlp.norm, (nn.Identity,)
    yield "mlp.fc2", mlp.fc2, (nn.Linear,)
    yield "mlp.drop2", mlp.drop2, (nn.Dropout,)
    if block.widens_in_attention or block.widens_in_mlp:
        yield "proj", block.proj, (nn.Linear,)
    yield "pool_skip", block.pool_skip, (nn.MaxPool2d, nn.MaxPool3d, nn.Identity)


def _why_not_part(name: str, module: nn.Module, kinds: tuple[type, ...]) -> str | None:
    if type(module) not in kinds:
        expected = " or ".join(kind.__name__ for kind in kinds)
        return f"{name} must be a plain {expected}, got {type(module).__name__}"
    if (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    ):
        return f"{name} has hooks, which run only where it is called"
    if "forward" in module.__dict__:
        return f"{name} has a forward method of its own"
    for parameter in module._parameters.values():
        if parameter is not None and type(parameter) not in (nn.Parameter, Tensor):
            return f"{name} has parameters of type {type(parameter).__name__}"
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) != 1:
        return f"{name} must normalise channels alone, got {tuple(module.normalized_shape)}"
    if isinstance(module, nn.Dropout) and module.p > 0:
        return f"{name} drops values, at a rate of {module.p}"
    if isinstance(module, (nn.Conv2d, nn.Conv3d)) and module.bias is not None:
        return f"{name} must be a convolution without bias"
    return None


def _unknown_options(block: MultiScaleBlock, *, masked_padding: bool = False) -> str | None:
    """Why no fast attention computes what the spec asks for.

    Args:
        masked_padding: whether the attention can hide the padding of windows.
    """
    spec = block.attn.spec
    if spec.axes == 3 and max(spec.stride_q[0], spec.stride_kv[0]) > 1:
        return "its frames are strided"
    if spec.shift:
        return "its windows are shifted"
    if spec.mask_window_padding and spec.window_size and not masked_padding:
        return "the padding of its windows is masked"
    if spec.position_terms and spec.rel_pos_kind not in ("decomposed", "space"):
        return f"its relative positions are {spec.rel_pos_kind}, not decomposed"
    if spec.position_terms not in ((), ("q",)):
        return f"its relative positions are on {', '.join(spec.position_terms)}, not on q alone"
    return None


def _tiled_limits(block: MultiScaleBlock, x: Tensor) -> str | None:
    if x.device.type != "cpu":
        return f"it is made for the CPU, got tensors on {x.device.type}"
    if (dtype := product_dtype(x)) not in (torch.float32, torch.float64, torch.bfloat16):
        return f"it computes in float32, float64 or bfloat16, got {dtype}"
    return _unknown_options(block)


def _triton_limits(block: MultiScaleBlock, x: Tensor) -> str | None:
    if reason := _unknown_options(block, masked_padding=True):
        return reason
    if reason := available.why_unavailable(x.device, product_dtype(x), block.attn.spec.head_dim):
        return reason
    from .triton.triton_attention import why_unsupported

    return why_unsupported(block.attn.spec.head_dim, *paths.pools_and_shape(block.attn, x))
