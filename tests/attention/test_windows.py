import pytest
import torch

from mvitv2_det.attention.windows import WindowGrid, largest_shift


@pytest.mark.parametrize("size", [(6, 9), (7, 11), (2, 1)])
def test_windows_by_slicing(size):
    """Each window is a slice of the map that was padded with zeros below and to the right."""
    window = 3
    x = torch.randn(2, *size, 4)
    rows, columns = -(-size[0] // window), -(-size[1] // window)
    padded = torch.zeros(2, rows * window, columns * window, 4)
    padded[:, : size[0], : size[1]] = x
    windows = iter(WindowGrid(size, window).partition(x))
    for image in range(2):
        for row in range(rows):
            for column in range(columns):
                top, left = row * window, column * window
                expected = padded[image, top : top + window, left : left + window]
                assert torch.equal(next(windows), expected)
    assert next(windows, None) is None


@pytest.mark.parametrize("size", [(6, 9), (7, 11), (2, 1)])
@pytest.mark.parametrize("shift", [0, 1])
def test_unpartition_inverts(size, shift):
    x = torch.randn(2, *size, 4)
    grid = WindowGrid(size, 3, shift)
    assert torch.equal(grid.unpartition(grid.partition(x)), x)


def test_shifted_windows_by_rolling():
    x = torch.randn(1, 6, 9, 2)
    expected = WindowGrid((6, 9), 3).partition(x.roll((-1, -1), (1, 2)))
    assert torch.equal(WindowGrid((6, 9), 3, 1).partition(x), expected)


def test_an_axis_of_one_window_is_not_shifted():
    assert WindowGrid((3, 9), 3, 1).shifts == (0, 1)


def test_regions():
    grid = WindowGrid((7, 3), 3, 1)
    on_cpu = {"device": torch.device("cpu")}
    plain = grid.regions(0, mask_padding=False, **on_cpu)
    assert plain.tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 1]]
    masked = grid.regions(0, mask_padding=True, **on_cpu)
    assert masked.tolist() == [[0, 0, 0], [0, 0, 0], [-1, -1, 1]]
    assert grid.regions(1, mask_padding=True, **on_cpu).tolist() == [[0, 0, 0]]


def test_shift_is_divisible_by_every_stride():
    assert largest_shift(14, (2, 1)) == 6
    assert largest_shift(56, (1, 4)) == 28
    assert largest_shift(7, (1, 1)) == 3
