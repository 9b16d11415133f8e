"""The drop-path rate of each block and which windows are shifted, read off the built networks."""

import pytest
import torch

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


@pytest.mark.parametrize("blocks", [(1, 1, 1, 1), (2, 1, 3, 2)])
def test_drop_path_rates_rise_over_all_stages(blocks):
    depth = sum(blocks)
    expected = [0.4 * index / (depth - 1) for index in range(depth)]
    assert drop_path_rates(mvit(blocks, drop_path_rate=0.4)) == pytest.approx(expected)


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
