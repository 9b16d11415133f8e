"""The schedule of blocks, seen in the networks that are built from it: rates, shifts, errors."""

import pytest
import torch
from detectron2.modeling import MViT as Detectron2MViT
from detectron2.modeling import ViT as Detectron2ViT

from mvitv2_det import VARIANTS, MViT, ViT


def drop_path_rates(model):
    return [getattr(block.drop_path, "drop_prob", 0.0) for block in model.blocks]


def shifts(model):
    """Tokens by which the windows of each block are shifted."""
    return [getattr(block.attn, "spec", block.attn).shift for block in model.blocks]


def mvit(blocks, **options):
    """An MViT of few channels; `blocks` holds the number of blocks in each stage."""
    last = [sum(blocks[: stage + 1]) - 1 for stage in range(len(blocks))]
    with torch.device("meta"):
        return MViT(embed_dim=8, depth=sum(blocks), num_heads=1, last_block_indexes=last, **options)


def vit(depth, **options):
    with torch.device("meta"):
        return ViT(embed_dim=8, depth=depth, num_heads=1, **options)


def test_drop_path_rates_of_a_plain_transformer_rise_linearly():
    assert drop_path_rates(vit(5, drop_path_rate=0.4)) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert drop_path_rates(vit(2, drop_path_rate=0.4)) == pytest.approx([0, 0.4])
    assert drop_path_rates(vit(1, drop_path_rate=0.4)) == [0]


# With the rates that its configs train with: of each size to the last bit.
@pytest.mark.usefixtures("without_memory")
@pytest.mark.parametrize("variant", VARIANTS)
def test_drop_path_rates_are_detectron2s_to_the_last_bit(variant):
    arguments = VARIANTS[variant].backbone_arguments()
    assert arguments["drop_path_rate"] > 0
    ours, theirs = MViT(**arguments), Detectron2MViT(**arguments)
    assert drop_path_rates(ours) == drop_path_rates(theirs)


@pytest.mark.usefixtures("without_memory")
@pytest.mark.parametrize(("depth", "rate"), [(1, 0.3), (12, 0.1), (24, 0.4), (32, 0.5)])
def test_drop_path_rates_of_a_plain_transformer_are_detectron2s_to_the_last_bit(depth, rate):
    sizes = {"embed_dim": 8, "depth": depth, "num_heads": 1, "drop_path_rate": rate}
    assert drop_path_rates(ViT(**sizes)) == drop_path_rates(Detectron2ViT(**sizes))


# Stages that start at blocks of even and of odd index.
@pytest.mark.parametrize(
    "blocks", [VARIANTS["T"].blocks, VARIANTS["B"].blocks, (2, 1, 2, 2), (3, 2, 2, 3), (2, 3, 4, 2)]
)
def test_every_second_block_of_a_stage_shifts_its_windows(blocks):
    expected = [index % 2 == 1 for number in blocks for index in range(number)]
    assert [shift > 0 for shift in shifts(mvit(blocks, window_layout="shifted"))] == expected


@pytest.mark.parametrize("window_layout", ["fixed", "hybrid"])
def test_other_layouts_shift_no_window(window_layout):
    assert not any(shifts(mvit((2, 3, 4, 2), window_layout=window_layout)))
    assert not any(shifts(vit(4, window_size=7, window_layout=window_layout)))


def test_every_second_block_of_a_plain_transformer_shifts_its_windows():
    assert shifts(vit(5, window_size=7, window_layout="shifted")) == [0, 3, 0, 3, 0]


def test_a_plain_transformer_has_one_feature_map():
    assert list(vit(3).output_shape()) == ["scale4"]


def test_position_tables_of_a_plain_transformer_fit_its_windows_or_its_map():
    """Rows: 2·7 - 1 for windows of 7 tokens, 2·14 - 1 for the 14 tokens of 224 pixels."""
    model = vit(4, window_size=7, use_rel_pos=True, global_block_indexes=(0, 2))
    assert [len(block.attn.rel_pos_h) for block in model.blocks] == [27, 13, 27, 13]


def test_queries_are_pooled_in_every_block_unless_told_otherwise():
    pooled = [block.attn.pool_q is not None for block in mvit((1, 2, 2, 2)).blocks]
    assert pooled == [True] * 7


def test_windows_of_one_token_are_allowed():
    mvit((1, 1, 1, 1), adaptive_kv_stride=1, adaptive_window_size=(2, 1, 1, 1))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: mvit((1, 1, 1, 1), adaptive_kv_stride=0), "^adaptive_kv_stride must be at least"),
        (
            lambda: mvit((1, 1, 1, 1), global_kv_stride_factor=0),
            "^global_kv_stride_factor must be at least 1, got 0",
        ),
        (
            lambda: mvit((1, 1, 1, 1), adaptive_window_size=-1),
            "^adaptive_window_size must be at least 0, got -1",
        ),
        (
            # Blocks before the first of scale5 are global, but for block 0.
            lambda: mvit((1, 1, 1, 2), adaptive_window_size=18, adaptive_kv_stride=1),
            "^adaptive_window_size must be divisible by 4 to be halved for scale5, got 18",
        ),
        (
            lambda: mvit((1, 1, 1, 1), adaptive_window_size=8, adaptive_kv_stride=16),
            "^the window of block 0 .scale2. must be divisible by its K/V stride, got window 8",
        ),
        (lambda: mvit((1, 1, 1)), r"of 4 stages, got 3: \(0, 1, 2\)"),
        (lambda: mvit((1, 0, 1, 1)), r"rise from 0 on, got 0 after 0 in \(0, 0, 1, 2\)"),
        (lambda: mvit((0, 1, 1, 1)), r"rise from 0 on, got -1 after -1 in \(-1, 0, 1, 2\)"),
        (
            lambda: MViT(depth=10, last_block_indexes=(0, 2, 7, 8)),
            "must be depth - 1 = 9, got 8",
        ),
        (lambda: vit(0), "^depth must be at least 1, got 0"),
        (lambda: vit(2, pooling=True, kv_stride=0), "^kv_stride must be at least 1, got 0"),
        (
            lambda: vit(2, window_size=7, global_block_indexes=(1, 2)),
            r"^global_block_indexes must be in 0 .. 1, got \[2\]",
        ),
    ],
)
def test_what_does_not_fit_is_named(build, words):
    with pytest.raises(ValueError, match=words):
        build()
