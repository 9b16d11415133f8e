"""The schedule of blocks: the paper's numbers, and the stage boundaries of Detectron2's MViT."""

import pytest

from mvitv2_det import VARIANTS
from mvitv2_det.backbone.schedule import build_plain_schedule, build_schedule

BLOCK = {"stage", "dim_out", "drop_path", "ends_stage"}


def schedule(variant="T", **changes):
    arguments = VARIANTS[variant].backbone_arguments() | {
        "adaptive_kv_stride": 4,
        "adaptive_window_size": 56,
        "table_size": 56,
    }
    return build_schedule(**arguments | changes)


def column(specs, name):
    """A number of each block, of the block itself or of its attention; one where axes agree."""
    values = [getattr(spec if name in BLOCK else spec.attention, name) for spec in specs]
    return [
        value[0] if isinstance(value, tuple) and len({*value}) == 1 else value for value in values
    ]


def test_table_1():
    """Channels, blocks and heads of the five sizes, as Table 1 of the paper prints them."""
    table = {
        "T": ((96, 192, 384, 768), (1, 2, 5, 2), (1, 2, 4, 8)),
        "S": ((96, 192, 384, 768), (1, 2, 11, 2), (1, 2, 4, 8)),
        "B": ((96, 192, 384, 768), (2, 3, 16, 3), (1, 2, 4, 8)),
        "L": ((144, 288, 576, 1152), (2, 6, 36, 4), (2, 4, 8, 16)),
        "H": ((192, 384, 768, 1536), (4, 8, 60, 8), (3, 6, 12, 24)),
    }
    for variant, (channels, blocks, heads) in table.items():
        specs = schedule(variant)
        stages = [[spec for spec in specs if spec.stage == stage] for stage in (2, 3, 4, 5)]
        assert tuple(stage[-1].dim_out for stage in stages) == channels
        assert tuple(len(stage) for stage in stages) == blocks
        assert tuple(stage[0].attention.num_heads for stage in stages) == heads


def test_blocks_of_t():
    specs = schedule("T")
    assert column(specs, "stage") == [2, 3, 3, 4, 4, 4, 4, 4, 5, 5]
    assert column(specs, "dim") == [96, 96, 192, 192, 384, 384, 384, 384, 384, 768]
    assert column(specs, "dim_out") == [96, 192, 192, 384, 384, 384, 384, 384, 768, 768]
    assert column(specs, "stride_q") == [1, 2, 1, 2, 1, 1, 1, 1, 2, 1]
    # Doubled where scale3 and scale4 end.
    assert column(specs, "stride_kv") == [4, 2, 4, 1, 1, 1, 1, 2, 1, 1]
    # One block late, and global where scale3, scale4 and scale5 end.
    assert column(specs, "window_size") == [56, 56, 0, 28, 14, 14, 14, 0, 14, 0]
    assert column(specs, "table_size") == [56, 56, 28, 28, 14, 14, 14, 14, 14, 7]
    assert column(specs, "ends_stage") == [i in (0, 2, 7, 9) for i in range(10)]


def test_drop_path_grows_linearly():
    rates = column(schedule("T", drop_path_rate=0.9), "drop_path")
    assert rates == pytest.approx([0.1 * index for index in range(10)])


def test_expansion_in_the_mlp():
    specs = schedule("T", expand_in_attention=False)
    assert all(spec.attention.dim == spec.attention.dim_out for spec in specs)
    assert column(specs, "dim_out") == [192, 192, 384, 384, 384, 384, 384, 768, 768, 768]


def test_without_windows_every_block_is_global():
    assert not any(column(schedule(adaptive_window_size=0), "window_size"))


def test_kv_stride_of_the_classification_network():
    specs = schedule("T", global_kv_stride_factor=1)
    assert column(specs, "stride_kv") == [4, 2, 2, 1, 1, 1, 1, 1, 1, 1]


def test_fixed_windows_leave_no_block_global():
    windows = column(schedule("T", window_layout="fixed"), "window_size")
    assert windows == [56, 56, 28, 28, 14, 14, 14, 14, 14, 7]


def test_shifted_windows_alternate_within_each_stage():
    specs = schedule("T", window_layout="shifted")
    assert column(specs, "window_size") == [56, 56, 28, 28, 14, 14, 14, 14, 14, 7]
    assert column(specs, "shift") == [0, 0, 14, 0, 7, 0, 7, 0, 0, 3]


def test_windows_of_each_stage():
    """The first block of a stage sees the stage's window in its own, not yet strided tokens."""
    specs = schedule("T", adaptive_window_size=(28, 14, 7, 7), window_layout="fixed")
    assert column(specs, "window_size") == [28, 28, 14, 14, 7, 7, 7, 7, 14, 7]
    # Only global blocks double their K/V stride.
    assert column(specs, "stride_kv") == [4, 2, 2, 1, 1, 1, 1, 1, 1, 1]


def test_chosen_global_blocks():
    specs = schedule("T", global_block_indexes=(0, 9))
    assert [spec.attention.window_size == 0 for spec in specs] == [i in (0, 9) for i in range(10)]


def test_queries_are_pooled_where_stages_start():
    specs = schedule("T", full_q_pooling=False)
    assert column(specs, "pool_q") == [i in (1, 3, 8) for i in range(10)]
    assert all(column(specs, "pool_kv"))


def plain_schedule(**changes):
    arguments = {
        "stage": 4,
        "embed_dim": 768,
        "depth": 12,
        "num_heads": 12,
        "window_size": 7,
        "table_size": 14,
        "drop_path_rate": 0.0,
    }
    return build_plain_schedule(**arguments | changes)


def test_plain_transformer():
    specs = plain_schedule()
    assert [spec.attention.window_size == 0 for spec in specs] == [
        i in (2, 5, 8, 11) for i in range(12)
    ]
    assert not any(column(specs, "pool_q") + column(specs, "pool_kv"))
    assert column(plain_schedule(window_layout="shifted"), "shift") == [0, 3] * 6
    pooled = plain_schedule(pooling=True, kv_stride=2, window_size=14)
    assert column(pooled, "stride_kv") == [2] * 12
    assert column(pooled, "stride_q") == [1] * 12


@pytest.mark.parametrize(
    ("build", "changes", "words"),
    [
        (schedule, {"window_layout": "swin"}, "fixed, shifted, hybrid, got 'swin'"),
        (schedule, {"adaptive_window_size": (28, 14, 7)}, r"each of 4 stages, got .28, 14, 7."),
        (schedule, {"adaptive_window_size": (28, 14, 7, 0)}, "at least 1 for each"),
        (schedule, {"global_block_indexes": (3, 10)}, r"in 0 .. 9, got .10."),
        (
            schedule,
            {"global_block_indexes": (3,), "window_layout": "fixed"},
            "belong to window_layout='hybrid', got 'fixed'",
        ),
        (plain_schedule, {"kv_stride": 2}, "kv_stride = 2 needs pooling=True"),
        (plain_schedule, {"window_size": -1}, "window_size must be at least 0, got -1"),
        (
            plain_schedule,
            {"pooling": True, "kv_stride": 2},
            "the window of block 0 .* got window 7 and stride 2",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_what_does_not_fit_is_refused(build, changes, words):
    with pytest.raises(ValueError, match=words):
        build(**changes)
