"""What each block of an MViT is made of: a pure function from sizes to block specs.

This is where the paper's schedule of widths, strides and windows (section 4.2 and 4.4,
appendix B.1) is written down, and where wrong sizes are refused. The treatment of the
stage boundaries follows ``detectron2/modeling/backbone/mvit.py``, because released weights
were trained with it:

* the first block of a stage still has the window and the position tables of the stage
  before, but already this stage's K/V stride;
* the K/V stride is doubled in the global blocks that end scale3 and scale4.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..variants import NUM_STAGES

FIRST_STAGE = 2  # stages are named scale2 .. scale5, after log2 of their stride
FEATURE_NAMES = tuple(f"scale{FIRST_STAGE + stage}" for stage in range(NUM_STAGES))


@dataclass(frozen=True)
class BlockSpec:
    """The numbers of one block.

    Attributes:
        stage: which stage the block belongs to, 2 to 5.
        dim: channels coming in.
        dim_attention: channels inside and after the attention.
        dim_out: channels going out, after the MLP.
        num_heads: attention heads.
        stride_q: stride of the query pooling, 2 in the first block of scale3 to scale5.
        stride_kv: stride of the key and value pooling.
        window_size: side of the attention window in incoming tokens; 0 is global attention.
        table_size: side of the pre-training token grid that sets the length of the
            relative position tables.
        drop_path: stochastic depth rate.
        ends_stage: whether the block's output is the stage's feature map.
    """

    stage: int
    dim: int
    dim_attention: int
    dim_out: int
    num_heads: int
    stride_q: int
    stride_kv: int
    window_size: int
    table_size: int
    drop_path: float
    ends_stage: bool


def build_schedule(
    *,
    embed_dim: int,
    depth: int,
    num_heads: int,
    last_block_indexes: Sequence[int],
    adaptive_kv_stride: int,
    adaptive_window_size: int,
    table_size: int,
    drop_path_rate: float,
    expand_in_attention: bool = True,
    global_kv_stride_factor: int = 2,
) -> list[BlockSpec]:
    """Returns the spec of every block, first to last.

    Args:
        embed_dim, num_heads: channels and heads of the first stage.
        depth: number of blocks.
        last_block_indexes: index of the last block of each of the four stages.
        adaptive_kv_stride: K/V stride of scale2, halved from stage to stage down to 1.
        adaptive_window_size: window of scale2, halved from stage to stage; 0: no windows.
        table_size: token grid side of the pre-training images at scale2.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        expand_in_attention: channels double in the attention of a stage's first block
            (appendix B.1); otherwise in the MLP of the last block of the stage before.
        global_kv_stride_factor: what the K/V stride is multiplied by in the global blocks
            that end scale3 and scale4.

    Raises:
        ValueError: a size does not fit another; the message has both numbers.
    """
    _check_sizes(embed_dim, depth, num_heads, last_block_indexes)
    _check_at_least("adaptive_kv_stride", adaptive_kv_stride, 1)
    _check_at_least("adaptive_window_size", adaptive_window_size, 0)
    _check_at_least("global_kv_stride_factor", global_kv_stride_factor, 1)
    if not 0.0 <= drop_path_rate < 1.0:
        raise ValueError(f"drop_path_rate must be in [0, 1), got {drop_path_rate}")

    last = tuple(last_block_indexes)
    schedule = []
    for index in range(depth):
        stage = _stage_of(index, last)
        # Windows and tables follow one block late; widths and K/V strides do not.
        lagging_stage = _stage_of(max(index - 1, 0), last)
        starts_stage = index > 0 and index - 1 in last
        is_global = adaptive_window_size == 0 or index in last[1:]

        width = embed_dim * 2**stage
        widens_next = index in last[:-1] and not expand_in_attention
        stride_kv = max(adaptive_kv_stride // 2**stage, 1)
        if index in last[1:3]:
            stride_kv *= global_kv_stride_factor
        spec = BlockSpec(
            stage=FIRST_STAGE + stage,
            dim=width // 2 if starts_stage and expand_in_attention else width,
            dim_attention=width,
            dim_out=2 * width if widens_next else width,
            num_heads=num_heads * 2**stage,
            stride_q=2 if starts_stage else 1,
            stride_kv=stride_kv,
            window_size=0 if is_global else _halved(adaptive_window_size, lagging_stage),
            table_size=table_size // 2**lagging_stage,
            drop_path=drop_path_rate * index / max(depth - 1, 1),
            ends_stage=index in last,
        )
        _check_window(index, spec)
        schedule.append(spec)
    return schedule


def _stage_of(index: int, last_block_indexes: Sequence[int]) -> int:
    """Which stage, counted from 0, the block belongs to."""
    return sum(index > last for last in last_block_indexes)


def _halved(window_size: int, times: int) -> int:
    if window_size % 2**times:
        raise ValueError(
            f"adaptive_window_size must be divisible by {2**times} to be halved for "
            f"scale{FIRST_STAGE + times}, got {window_size}"
        )
    return window_size // 2**times


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _check_sizes(
    embed_dim: int, depth: int, num_heads: int, last_block_indexes: Sequence[int]
) -> None:
    _check_at_least("num_heads", num_heads, 1)
    _check_at_least("embed_dim", embed_dim, 1)
    if embed_dim % num_heads:
        raise ValueError(
            f"embed_dim must be divisible by num_heads, got {embed_dim} and {num_heads}"
        )
    if len(last_block_indexes) != NUM_STAGES:
        raise ValueError(
            f"last_block_indexes must name the last block of {NUM_STAGES} stages, "
            f"got {len(last_block_indexes)}: {tuple(last_block_indexes)}"
        )
    earlier = -1
    for last in last_block_indexes:
        if last <= earlier:
            raise ValueError(
                f"last_block_indexes must rise from 0 on, got {last} after {earlier} "
                f"in {tuple(last_block_indexes)}"
            )
        earlier = last
    if last_block_indexes[-1] != depth - 1:
        raise ValueError(
            f"the last of last_block_indexes must be depth - 1 = {depth - 1}, "
            f"got {last_block_indexes[-1]}"
        )


def _check_window(index: int, spec: BlockSpec) -> None:
    """Query and key windows must cover the same tokens, so both strides divide the window."""
    for name, stride in (("q", spec.stride_q), ("K/V", spec.stride_kv)):
        if spec.window_size % stride:
            raise ValueError(
                f"the window of block {index} (scale{spec.stage}) must be divisible by its "
                f"{name} stride, got window {spec.window_size} and stride {stride}: choose "
                f"another adaptive_window_size or adaptive_kv_stride"
            )
