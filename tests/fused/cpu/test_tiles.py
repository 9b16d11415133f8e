"""Tiles and windows of maps against maps that are numbered token by token."""

import pytest
import torch

from mvitv2_det.attention.windows import WindowGrid
from mvitv2_det.fused.cpu import tiles
from mvitv2_det.fused.cpu.tiles import merge_windows, split_windows, tiles_of
from mvitv2_det.fused.shape import AttentionShape

HEADS, CHANNELS = 3, 4


def shape(window: int) -> AttentionShape:
    return AttentionShape(HEADS, 0.5, (window, window), (window, window), residual=True)


@pytest.mark.parametrize("size", [(8, 12), (9, 14), (3, 5)])
def test_windows_are_those_of_the_plain_model(size):
    """Whole maps, maps that windows reach over, and maps smaller than a window; bit by bit."""
    x = torch.randn(2, *size, HEADS * CHANNELS)
    windows = split_windows(x, shape(4), scale=0.25)
    expected = WindowGrid(size, 4).partition(0.25 * x)  # (B·rows·columns, 4, 4, C)
    rows, columns = windows.shape[:2]
    expected = expected.unflatten(0, (2, rows, columns)).unflatten(-1, (HEADS, CHANNELS))
    expected = expected.permute(1, 2, 0, 5, 3, 4, 6).flatten(4, 5)
    assert torch.equal(windows, expected)


@pytest.mark.parametrize("size", [(8, 12), (9, 14), (3, 5)])
def test_merging_is_the_inverse(size):
    x = torch.randn(2, *size, HEADS * CHANNELS)
    assert torch.equal(merge_windows(split_windows(x, shape(4)), x.shape, shape(4)), x)
    assert torch.equal(merge_windows(split_windows(x, shape(4)), x.shape, shape(4), 0.5), 0.5 * x)


@pytest.mark.parametrize("logits", [1, 3000, 10**9])
@pytest.mark.parametrize("size", [(8, 12), (9, 14), (3, 5)])
def test_tiles_cover_a_map_once(monkeypatch, size, logits):
    """Each token is in one tile, with its own window and its place within it."""
    monkeypatch.setattr(tiles, "_LOGITS", logits)
    height, width = size
    tokens = torch.arange(height * width, dtype=torch.float32).view(1, height, width, 1, 1)
    seen, windows = [], []
    for tile in tiles_of(shape(4), 1, height, width):
        part = tile.view(tokens)  # (n, 1, 1, r, c, 1)
        rows, columns = part.div(width, rounding_mode="floor"), part % width
        assert (rows // 4 == tile.window_row).all()
        for window, inside in zip(
            range(tile.windows.start, tile.windows.stop), columns, strict=True
        ):
            assert (inside // 4 == window).all()
        first_row = rows.min() % 4 == 0
        assert tile.is_first_of_window == first_row
        seen.append(part.flatten())
        windows.append((tile.window_row, tile.windows.start, tile.is_first_of_window))
    assert torch.equal(torch.cat(seen).sort().values, tokens.flatten())
    first = [window[:2] for window in windows if window[2]]
    assert len(first) == len(set(first))
