"""Schedules of blocks: pure functions from the sizes of a network to the spec of each block.

This is where the paper's schedule of widths, strides and windows (section 4.2 and 4.4,
appendix B.1) is written down, and where wrong sizes are refused. The treatment of the
stage boundaries follows ``detectron2/modeling/backbone/mvit.py``, because released weights
were trained with it:

* the first block of a stage still has the window and the position tables of the stage
  before, but already this stage's K/V stride;
* the K/V stride is doubled in the global blocks that end scale3 and scale4.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..attention.spec import AttentionSpec, per_axis
from ..attention.windows import largest_shift
from ..variants import NUM_STAGES

FIRST_STAGE = 2  # stages are named scale2 .. scale5, after log2 of their stride
FEATURE_NAMES = tuple(f"scale{FIRST_STAGE + stage}" for stage in range(NUM_STAGES))

# Which blocks have windows, and where they lie (Table 4): fixed in all blocks; in all blocks,
# shifted by half in every other block of a stage (Swin); in all but some global blocks (Hwin).
WINDOW_LAYOUTS = ("fixed", "shifted", "hybrid")

_DEFAULT_OPTIONS = AttentionSpec()


@dataclass(frozen=True)
class BlockSpec:
    """The numbers of one block.

    Attributes:
        stage: the stage that the block belongs to, 2 to 5.
        attention: the options of the attention, with the channels coming in (``dim``) and those
            inside and after the attention (``dim_out``).
        dim_out: channels going out, after the MLP.
        mlp_ratio: hidden channels of the MLP over its input channels.
        drop_path: stochastic depth rate.
        ends_stage: whether the block's output is the stage's feature map.
    """

    stage: int
    attention: AttentionSpec
    dim_out: int
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    ends_stage: bool = False


def build_schedule(
    *,
    embed_dim: int,
    depth: int,
    num_heads: int,
    last_block_indexes: Sequence[int],
    adaptive_kv_stride: int,
    adaptive_window_size: int | Sequence[int],
    table_size: int | tuple[int, ...],
    drop_path_rate: float,
    expand_in_attention: bool = True,
    global_kv_stride_factor: int = 2,
    window_layout: str = "hybrid",
    global_block_indexes: Sequence[int] | None = None,
    full_q_pooling: bool = True,
    mlp_ratio: float = 4.0,
    attention: AttentionSpec = _DEFAULT_OPTIONS,
) -> list[BlockSpec]:
    """The spec of every block of an MViT, first to last.

    Args:
        embed_dim, num_heads: channels and heads of the first stage.
        depth: number of blocks.
        last_block_indexes: index of the last block of each of the four stages.
        adaptive_kv_stride: K/V stride of scale2, halved from stage to stage down to 1.
        adaptive_window_size: window of scale2, halved from stage to stage, or the windows of all
            four stages; 0: no windows.
        table_size: token grid of the pre-training images or clips at scale2, a number for each
            axis or one for all.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        expand_in_attention: channels double in the first attention of a stage (appendix B.1);
            otherwise in the MLP of the last block of the stage before.
        global_kv_stride_factor: by which the K/V stride grows in the last blocks of scale3 and
            scale4 where they are global.
        window_layout: one of :data:`WINDOW_LAYOUTS`.
        global_block_indexes: the blocks without windows of the hybrid layout; by default the last
            ones of scale3, scale4 and scale5.
        full_q_pooling: pool the queries of every block (Table 7), not only where a stage starts.
        mlp_ratio: hidden channels of the MLPs over their input channels.
        attention: the options that all blocks share, which say how many axes the maps have;
            widths, heads, strides, windows and table sizes are set block by block. Time, the
            first of three axes, is never strided (appendix B.1).

    Raises:
        ValueError: a size does not fit another; the message has both numbers.
    """
    _check_sizes(embed_dim, depth, num_heads, last_block_indexes)
    _check_at_least("adaptive_kv_stride", adaptive_kv_stride, 1)
    _check_at_least("global_kv_stride_factor", global_kv_stride_factor, 1)
    _check_drop_path(drop_path_rate)
    last = tuple(last_block_indexes)
    _check_windows(adaptive_window_size)
    global_blocks = _global_blocks(window_layout, global_block_indexes, last[1:], depth)
    grid = per_axis("table_size", table_size, attention.axes)
    drop_path_rates = _drop_path_rates(drop_path_rate, depth)

    schedule = []
    for index in range(depth):
        stage = _stage_of(index, last)
        starts_stage = index > 0 and index - 1 in last
        # Windows and tables follow one block late; widths and K/V strides do not.
        stride_q = 2 if starts_stage else 1
        lagging_stage = _stage_of(max(index - 1, 0), last)

        width = embed_dim * 2**stage
        widens_next = index in last[:-1] and not expand_in_attention
        window = 0 if index in global_blocks else _window(adaptive_window_size, stage, stride_q)
        stride_kv = max(adaptive_kv_stride // 2**stage, 1)
        if index in last[1:3] and not window:
            stride_kv *= global_kv_stride_factor
        index_in_stage = index - (last[stage - 1] + 1 if stage else 0)
        is_shifted = window_layout == "shifted" and index_in_stage % 2 == 1
        spec = BlockSpec(
            stage=FIRST_STAGE + stage,
            attention=replace(
                attention,
                dim=width // 2 if starts_stage and expand_in_attention else width,
                dim_out=width,
                num_heads=num_heads * 2**stage,
                pool_q=full_q_pooling or starts_stage,
                stride_q=_in_space(stride_q, attention.axes),
                stride_kv=_in_space(stride_kv, attention.axes),
                window_size=window,
                shift=largest_shift(window, (stride_q, stride_kv)) if is_shifted else 0,
                table_size=(*grid[:-2], *(side // 2**lagging_stage for side in grid[-2:])),
            ),
            dim_out=2 * width if widens_next else width,
            mlp_ratio=mlp_ratio,
            drop_path=drop_path_rates[index],
            ends_stage=index in last,
        )
        _check_window(index, spec)
        schedule.append(spec)
    return schedule


def build_plain_schedule(
    *,
    stage: int,
    embed_dim: int,
    depth: int,
    num_heads: int,
    window_size: int,
    table_size: int,
    drop_path_rate: float,
    window_layout: str = "hybrid",
    global_block_indexes: Sequence[int] | None = None,
    pooling: bool = False,
    kv_stride: int = 1,
    mlp_ratio: float = 4.0,
    attention: AttentionSpec = _DEFAULT_OPTIONS,
) -> list[BlockSpec]:
    """The spec of every block of a plain ViT: one stage, the rows of ViT-B in Table 4.

    Args:
        stage: log2 of the patches' stride.
        embed_dim, depth, num_heads: the size.
        window_size: side of the windows in tokens; 0: no windows.
        table_size: token grid side of the pre-training images.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        window_layout: one of :data:`WINDOW_LAYOUTS`.
        global_block_indexes: the blocks without windows of the hybrid layout; by default the last
            of each quarter.
        pooling: pool q, k and v.
        kv_stride: stride of the key and value pooling.
        mlp_ratio: hidden channels of the MLPs over their input channels.
        attention: the options that all blocks share.

    Raises:
        ValueError: a size does not fit another; the message has both numbers.
    """
    _check_width(embed_dim, num_heads)
    _check_at_least("depth", depth, 1)
    _check_at_least("kv_stride", kv_stride, 1)
    _check_at_least("window_size", window_size, 0)
    _check_drop_path(drop_path_rate)
    if kv_stride > 1 and not pooling:
        raise ValueError(f"kv_stride = {kv_stride} needs pooling=True")
    quarters = [round((quarter + 1) * depth / 4) - 1 for quarter in range(4)]
    global_blocks = _global_blocks(window_layout, global_block_indexes, quarters, depth)
    drop_path_rates = _drop_path_rates(drop_path_rate, depth)

    schedule = []
    for index in range(depth):
        window = 0 if index in global_blocks else window_size
        is_shifted = window_layout == "shifted" and index % 2 == 1
        spec = BlockSpec(
            stage=stage,
            attention=replace(
                attention,
                dim=embed_dim,
                dim_out=embed_dim,
                num_heads=num_heads,
                pool_q=pooling,
                pool_kv=pooling,
                stride_q=(1, 1),
                stride_kv=(kv_stride, kv_stride),
                window_size=window,
                shift=largest_shift(window, (kv_stride,)) if is_shifted else 0,
                table_size=(window or table_size,) * 2,
            ),
            dim_out=embed_dim,
            mlp_ratio=mlp_ratio,
            drop_path=drop_path_rates[index],
            ends_stage=index == depth - 1,
        )
        _check_window(index, spec)
        schedule.append(spec)
    return schedule


def _drop_path_rates(last: float, depth: int) -> list[float]:
    """Rates from 0 to that of the last block, in equal steps of float32.

    Detectron2, PySlowFast and timm round them so: a path that is kept is divided by its rate, and
    seeded trainings coincide to the last bit only if the rates do.
    """
    steps: list[float] = torch.linspace(0, last, depth, device="cpu").tolist()
    return steps


def _stage_of(index: int, last_block_indexes: Sequence[int]) -> int:
    """Which stage, counted from 0, the block belongs to."""
    return sum(index > last for last in last_block_indexes)


def _in_space(stride: int, axes: int) -> tuple[int, ...]:
    """The stride of each axis: height and width, the last two, are strided."""
    return (*(1,) * (axes - 2), stride, stride)


def _window(adaptive_window_size: int | Sequence[int], stage: int, stride_q: int) -> int:
    """The window of a block, in its incoming tokens: the stage's own, in its strided queries."""
    if isinstance(adaptive_window_size, Sequence):
        return adaptive_window_size[stage] * stride_q
    window, rest = divmod(adaptive_window_size * stride_q, 2**stage)
    if rest:
        raise ValueError(
            f"adaptive_window_size must be divisible by {2**stage // stride_q} to be halved for "
            f"scale{FIRST_STAGE + stage}, got {adaptive_window_size}"
        )
    return window


def _global_blocks(
    window_layout: str, chosen: Sequence[int] | None, default: Sequence[int], depth: int
) -> set[int]:
    """The blocks that attend over the whole map though there are windows."""
    if window_layout not in WINDOW_LAYOUTS:
        raise ValueError(
            f"window_layout must be one of {', '.join(WINDOW_LAYOUTS)}, got {window_layout!r}"
        )
    if chosen is None:
        return set(default) if window_layout == "hybrid" else set()
    if window_layout != "hybrid":
        raise ValueError(
            f"global_block_indexes belong to window_layout='hybrid', got {window_layout!r}"
        )
    beyond = [index for index in chosen if not 0 <= index < depth]
    if beyond:
        raise ValueError(f"global_block_indexes must be in 0 .. {depth - 1}, got {beyond}")
    return set(chosen)


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _check_windows(adaptive_window_size: int | Sequence[int]) -> None:
    if not isinstance(adaptive_window_size, Sequence):
        _check_at_least("adaptive_window_size", adaptive_window_size, 0)
    elif len(adaptive_window_size) != NUM_STAGES or min(adaptive_window_size) < 1:
        raise ValueError(
            f"adaptive_window_size must be one number, or a window of at least 1 for each of "
            f"{NUM_STAGES} stages, got {list(adaptive_window_size)}"
        )


def _check_drop_path(rate: float) -> None:
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"drop_path_rate must be in [0, 1), got {rate}")


def _check_width(embed_dim: int, num_heads: int) -> None:
    _check_at_least("num_heads", num_heads, 1)
    _check_at_least("embed_dim", embed_dim, 1)
    if embed_dim % num_heads:
        raise ValueError(
            f"embed_dim must be divisible by num_heads, got {embed_dim} and {num_heads}"
        )


def _check_sizes(
    embed_dim: int, depth: int, num_heads: int, last_block_indexes: Sequence[int]
) -> None:
    _check_width(embed_dim, num_heads)
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
    window = spec.attention.window_size
    strides = (("q", spec.attention.stride_q[-1]), ("K/V", spec.attention.stride_kv[-1]))
    for name, stride in strides:
        if window % stride:
            raise ValueError(
                f"the window of block {index} (scale{spec.stage}) must be divisible by its "
                f"{name} stride, got window {window} and stride {stride}: choose "
                f"another adaptive_window_size or adaptive_kv_stride"
            )
