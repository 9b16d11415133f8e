"""Strips and windows of maps against what they are made of."""

import pytest
import torch

from mvitv2_det.attention.windows import WindowGrid
from mvitv2_det.fused.cpu import tiles as layouts
from mvitv2_det.fused.cpu.tiles import Layout, unwindows, windows_of

HEADS, CHANNELS = 3, 4


def layout(window: int) -> Layout:
    return Layout(HEADS, 0.5, (window, window), (window, window), residual=True)


@pytest.mark.parametrize("size", [(8, 12), (9, 14), (3, 5)])
def test_windows_are_those_of_the_reference_path(size):
    """Whole maps, maps that windows reach over, and maps smaller than a window; bit by bit."""
    x = torch.randn(2, *size, HEADS * CHANNELS)
    windows = windows_of(x, layout(4), scale=0.25)
    expected = WindowGrid(size, 4).partition(0.25 * x)  # (B·rows·columns, 4, 4, C)
    rows, columns = windows.shape[:2]
    expected = expected.unflatten(0, (2, rows, columns)).unflatten(-1, (HEADS, CHANNELS))
    expected = expected.permute(1, 2, 0, 5, 3, 4, 6).flatten(4, 5)
    assert torch.equal(windows, expected)


@pytest.mark.parametrize("size", [(8, 12), (9, 14), (3, 5)])
def test_unwindows_is_the_inverse(size):
    x = torch.randn(2, *size, HEADS * CHANNELS)
    assert torch.equal(unwindows(windows_of(x, layout(4)), x.shape, layout(4)), x)
    assert torch.equal(unwindows(windows_of(x, layout(4)), x.shape, layout(4), 0.5), 0.5 * x)


@pytest.mark.parametrize("scores", [1, 3000, 10**9])
@pytest.mark.parametrize("above", [0, 3, 4])
@pytest.mark.parametrize("size", [(8, 12), (9, 14), (3, 5)])
def test_strips_cover_a_map_once(monkeypatch, size, above, scores):
    """Each token is in one strip, with its own window and its place within it."""
    monkeypatch.setattr(layouts, "_SCORES", scores)
    height, width = size
    tokens = torch.arange(height * width, dtype=torch.float32).view(1, height, width, 1, 1)
    seen, opened = [], []
    for strip in layout(4).strips(1, height, width, above):
        part = strip.of_map(tokens)  # (n, 1, 1, r, c, 1)
        rows, columns = part.div(width, rounding_mode="floor"), part % width
        assert ((rows + above) // 4 == strip.window_row).all()
        for window, inside in zip(
            range(strip.windows.start, strip.windows.stop), columns, strict=True
        ):
            assert (inside // 4 == window).all()
        first_row = (rows.min() + above) % 4 == 0
        assert strip.opens == first_row
        seen.append(part.flatten())
        opened.append((strip.window_row, strip.windows.start, strip.opens))
    assert torch.equal(torch.cat(seen).sort().values, tokens.flatten())
    openings = [window[:2] for window in opened if window[2]]
    assert len(openings) == len(set(openings))
