"""Whether the kernels can run on a device at all; imports Triton only where it is installed."""

import os
from functools import cache
from importlib.util import find_spec

import torch

from . import DTYPES

MIN_TRITON = (3, 4)  # kernels take named tuples
MIN_CAPABILITY = (8, 0)  # bfloat16 on tensor cores
# Of a head. With 8 the kernels were wrong on an H100 in 16 bits, though right in the interpreter.
MIN_CHANNELS = 64


def why_unavailable(device: torch.device, dtype: torch.dtype, channels: int = 96) -> str | None:
    """Says why the kernels cannot run on tensors of a dtype there; None where they can.

    Args:
        channels: of a head.
    """
    if find_spec("triton") is None:
        return "Triton is not installed"
    if interpreted():
        return _triton_lacks()
    if device.type != "cuda":
        return f"it is made for NVIDIA GPUs, got tensors on {device.type}"
    if dtype not in DTYPES:
        return f"it computes in float16, bfloat16 or float32, got {dtype}"
    if channels < MIN_CHANNELS:
        return f"its heads have {channels} channels, at least {MIN_CHANNELS} go on a GPU"
    return _triton_lacks() or _gpu_lacks(device, dtype, channels)


@cache
def _triton_lacks() -> str | None:
    import triton

    found = tuple(int(number) for number in triton.__version__.split(".")[:2])
    if found < MIN_TRITON:
        wanted = ".".join(map(str, MIN_TRITON))
        return f"it needs Triton {wanted} or later, got {triton.__version__}"
    return None


@cache
def _gpu_lacks(device: torch.device, dtype: torch.dtype, channels: int) -> str | None:
    if torch.version.hip is not None:
        return "it is made for NVIDIA GPUs, got one for ROCm"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        wanted, got = (".".join(map(str, number)) for number in (MIN_CAPABILITY, capability))
        return f"it needs a GPU of compute capability {wanted} or more, got {got}"
    from .self_check import fault

    return fault(device, dtype, channels)


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on tensors of any device, as in tests."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"
