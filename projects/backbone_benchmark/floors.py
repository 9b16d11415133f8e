"""The least that pooling and attention of each block must move and multiply: from shapes alone.

Every input is read once and every output written once. Weights are left out: the tables of relative
positions count, the convolutions' and norms' hundreds of numbers do not.

Axes: B images, H × W tokens of C = h·d channels of h heads, pooled to Hq × Wq queries and Hk × Wk
keys; Q_a queries and K_a keys along axis a of a window; e bytes of a number.
"""

from collections import Counter
from dataclasses import dataclass
from math import prod

import torch

from mvitv2_det import VARIANTS, MViT
from mvitv2_det.attention.multiscale import MultiScaleAttention
from projects.backbone_benchmark.networks import Setting

FAMILIES = ("pooling forward", "pooling backward", "attention forward", "attention backward")
KERNEL = 3  # of the pooling convolutions
_LSE_BYTES = 4  # of a query and head: what backward knows the softmax by


@dataclass(frozen=True)
class Work:
    """What one block pools and attends to.

    Attributes:
        stage: name of its stage.
        batch: B.
        size: (H, W) of the incoming tokens.
        channels, heads: C and h.
        stride_q, stride_kv: of the pooling.
        window: side in incoming tokens; 0 is the whole map.
    """

    stage: str
    batch: int
    size: tuple[int, int]
    channels: int
    heads: int
    stride_q: int
    stride_kv: int
    window: int

    @property
    def name(self) -> str:
        """For tables."""
        where = f"windows of {self.window}" if self.window else "global"
        return f"{self.stage}, {where}, strides {self.stride_q} and {self.stride_kv}"

    @property
    def size_q(self) -> tuple[int, int]:
        """(Hq, Wq)."""
        return _pooled(self.size, self.stride_q)

    @property
    def size_kv(self) -> tuple[int, int]:
        """(Hk, Wk)."""
        return _pooled(self.size, self.stride_kv)

    @property
    def window_q(self) -> tuple[int, int]:
        """Queries along the sides of a window; the whole map without windows."""
        return (self.window // self.stride_q,) * 2 if self.window else self.size_q

    @property
    def window_kv(self) -> tuple[int, int]:
        """Keys along the sides of a window."""
        return (self.window // self.stride_kv,) * 2 if self.window else self.size_kv


def works(setting: Setting) -> Counter[Work]:
    """What the blocks of a network do at a setting, and how many do the same."""
    with torch.device("meta"):
        model = MViT(**VARIANTS[setting.variant].backbone_arguments())
    size = _pooled(setting.size, model.patch_embed.proj.stride[0])
    stages = stages_of(setting.variant)
    found = Counter()
    for stage, block in zip(stages, model.blocks, strict=True):
        work = work_of(block.attn, stage, setting.batch, size)
        found[work] += 1
        size = work.size_q
    return found


def stages_of(variant: str) -> list[str]:
    """The stage of every block."""
    blocks = VARIANTS[variant].blocks
    return [f"scale{2 + stage}" for stage, number in enumerate(blocks) for _ in range(number)]


def work_of(attention: MultiScaleAttention, stage: str, batch: int, size: tuple[int, int]) -> Work:
    """What a module does with (B, H, W) tokens."""
    return Work(
        stage,
        batch,
        tuple(size),
        attention.proj.in_features,
        attention.num_heads,
        attention.stride_q,
        attention.stride_kv,
        attention.window_size,
    )


def least_bytes(work: Work, family: str, itemsize: int) -> int:
    """Bytes that a family of kernels has to move, with n = B·H·W·C numbers in each of q, k, v.

    - pooling forward: what the convolutions read of q, k and v, and the pooled maps;
    - pooling backward: that, with gradients for pooled maps, and the 3·n of the projection's;
    - attention forward: q, k, v, R of both axes, the output, and 4 bytes for each query and head;
    - attention backward: those, the output's gradient, and gradients of q, k, v and R.
    """
    incoming = work.batch * prod(work.size) * work.channels
    queries = work.batch * prod(work.size_q) * work.channels
    keys = work.batch * prod(work.size_kv) * work.channels
    positions = sum(q * k for q, k in zip(work.window_q, work.window_kv, strict=True))
    positions *= work.channels // work.heads
    lse = _LSE_BYTES * work.batch * work.heads * prod(work.size_q)
    rows = work.batch * work.channels
    taken = rows * (_read(work.size, work.stride_q) + 2 * _read(work.size, work.stride_kv))
    return {
        "pooling forward": itemsize * (taken + queries + 2 * keys),
        "pooling backward": itemsize * (taken + queries + 2 * keys + 3 * incoming),
        "attention forward": itemsize * (2 * queries + 2 * keys + positions) + lse,
        "attention backward": itemsize * (4 * queries + 4 * keys + 2 * positions) + lse,
    }[family]


def multiply_adds(work: Work, family: str) -> int:
    """Of the matrix products and convolutions; gradients of R, a product for each axis, left out.

    Attention forward has two products of every query and key of a window, zero-padded keys
    included; backward has five: logits again, and the gradients of weights, q, k and v.
    """
    pairs = work.batch * work.channels * prod(work.size_q) * prod(work.window_kv)
    pooled = work.batch * work.channels * (prod(work.size_q) + 2 * prod(work.size_kv))
    return {
        "pooling forward": KERNEL**2 * pooled,
        "pooling backward": 3 * KERNEL**2 * pooled,
        "attention forward": 2 * pairs,
        "attention backward": 5 * pairs,
    }[family]


def _pooled(size: tuple[int, int], stride: int) -> tuple[int, int]:
    return tuple(-(-side // stride) for side in size)


def _read(size: tuple[int, int], stride: int) -> int:
    """How many places a pooling convolution reads of a map."""
    half = KERNEL // 2
    return prod(
        len(
            {
                index * stride + tap
                for index in range(pooled)
                for tap in range(-half, half + 1)
                if 0 <= index * stride + tap < side
            }
        )
        for side, pooled in zip(size, _pooled(size, stride), strict=True)
    )
