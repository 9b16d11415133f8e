"""The schedule of blocks: the paper's numbers, and the stage boundaries of Detectron2's MViT."""

import pytest

from mvitv2_det import VARIANTS
from mvitv2_det.backbone import build_schedule


def schedule(variant="T", **changes):
    arguments = VARIANTS[variant].backbone_arguments() | {
        "adaptive_kv_stride": 4,
        "adaptive_window_size": 56,
        "table_size": 56,
    }
    return build_schedule(**arguments | changes)


def column(specs, name):
    return [getattr(spec, name) for spec in specs]


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
        assert tuple(stage[0].num_heads for stage in stages) == heads


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
    assert column(specs, "dim") == column(specs, "dim_attention")
    assert column(specs, "dim_out") == [192, 192, 384, 384, 384, 384, 384, 768, 768, 768]


def test_without_windows_every_block_is_global():
    assert not any(column(schedule(adaptive_window_size=0), "window_size"))


def test_kv_stride_of_the_classification_network():
    specs = schedule("T", global_kv_stride_factor=1)
    assert column(specs, "stride_kv") == [4, 2, 2, 1, 1, 1, 1, 1, 1, 1]
