"""What the CPU has instructions for, as PyTorch says; older versions say nothing."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch


def capabilities() -> Mapping[str, Any]:
    """Instructions by name, such as ``avx512_f``, and the CPU's own name."""
    return getattr(torch.cpu, "get_capabilities", dict)()


@cache
def multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for products of bfloat16."""
    able = capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
