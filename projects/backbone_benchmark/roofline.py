"""Least bytes and products of each block's pooling and attention, from shapes alone.

Every input is read once and every output is written once. The tables of relative positions are
counted, the few hundred weights of convolutions and norms are not.

Axes: B images, H × W tokens of C = h·d channels of h heads, pooled to Hq × Wq queries and Hk × Wk
keys; Q_a queries and K_a keys along axis a of a window.
"""

from collections import Counter
from dataclasses import dataclass
from math import prod

import torch

from mvitv2_det import VARIANTS, MViT
from mvitv2_det.attention.spec import AttentionSpec
from mvitv2_det.backbone.block import MultiScaleBlock
from projects.backbone_benchmark.networks import Setting, stages_of

FAMILIES = ("pooling forward", "pooling backward", "attention forward", "attention backward")
KERNEL = 3  # of the pooling convolutions
_LSE_BYTES = 4  # of the log-sum-exp that forward stores for each query and head


@dataclass(frozen=True)
class Work:
    """Shape of one block's pooling and attention.

    Attributes:
        stage: name of the block's stage.
        batch: B.
        size: (H, W) of the incoming tokens.
        channels, heads: C and h.
        stride_q, stride_kv: strides of the pooling.
        window: side of a window in incoming tokens; 0 stands for the whole map.
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
        """Kind of block, as in tables."""
        where = f"windows of {self.window}" if self.window else "global"
        return f"{self.stage}, {where}, strides {self.stride_q} and {self.stride_kv}"

    @property
    def size_q(self) -> tuple[int, int]:
        """Size of the map of queries, (Hq, Wq)."""
        return _pooled(self.size, self.stride_q)

    @property
    def size_kv(self) -> tuple[int, int]:
        """Size of the map of keys, (Hk, Wk)."""
        return _pooled(self.size, self.stride_kv)

    @property
    def window_q(self) -> tuple[int, int]:
        """Number of queries along the sides of a window, or of the whole map without windows."""
        return (self.window // self.stride_q,) * 2 if self.window else self.size_q

    @property
    def window_kv(self) -> tuple[int, int]:
        """Number of keys along the sides of a window, or of the whole map without windows."""
        return (self.window // self.stride_kv,) * 2 if self.window else self.size_kv


def works(setting: Setting) -> Counter[Work]:
    """Counts the blocks of each kind of a network at a setting."""
    with torch.device("meta"):
        model = MViT(**VARIANTS[setting.variant].backbone_arguments())
    size = _pooled(setting.size, model.patch_embed.proj.stride[0])
    stages = stages_of(setting.variant)
    found = Counter()
    for stage, block in zip(stages, model.blocks, strict=True):
        work = work_of(block.spec.attention, stage, setting.batch, size)
        found[work] += 1
        size = work.size_q
    return found


def work_of(attention: AttentionSpec, stage: str, batch: int, size: tuple[int, int]) -> Work:
    """Describes what an attention does with (B, H, W) tokens."""
    return Work(
        stage,
        batch,
        tuple(size),
        attention.dim_out,
        attention.num_heads,
        attention.stride_q[0],
        attention.stride_kv[0],
        attention.window_size,
    )


def block_of(model: MViT, setting: Setting, work: Work) -> MultiScaleBlock:
    """Returns the first block of a network that does this work.

    Raises:
        LookupError: there is no such block.
    """
    for stage, block in zip(stages_of(setting.variant), model.blocks, strict=True):
        if work_of(block.spec.attention, stage, work.batch, work.size) == work:
            return block
    raise LookupError(work.name)


def least_bytes(work: Work, family: str, itemsize: int) -> int:
    """Counts the bytes that a family of kernels has to move.

    - pooling forward: the places of q, k and v that the convolutions read, and the pooled maps;
    - pooling backward: the same places, the gradients of the pooled maps and of q, k and v;
    - attention forward: q, k, v, R of both axes, the output and the log-sum-exps;
    - attention backward: the same, and the gradients of the output and of q, k, v and R.

    Args:
        itemsize: bytes of a number.
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
    """Counts the multiply-adds of matrix products and convolutions, without those of R's gradient.

    Attention forward has two products of all queries and keys of a window, zero-padded keys
    included. Backward has five: the logits once more, and the gradients of the attention weights,
    q, k and v.
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
    """Counts the places of a map that a pooling convolution reads."""
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
