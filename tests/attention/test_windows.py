import pytest
import torch

from mvitv2_det.attention.windows import partition, unpartition


@pytest.mark.parametrize("size", [(6, 9), (7, 11), (2, 1)])
def test_windows_by_slicing(size):
    """Each window is a slice of the map that was padded with zeros below and to the right."""
    window = 3
    x = torch.randn(2, *size, 4)
    rows, columns = -(-size[0] // window), -(-size[1] // window)
    padded = torch.zeros(2, rows * window, columns * window, 4)
    padded[:, : size[0], : size[1]] = x
    windows = iter(partition(x, window))
    for image in range(2):
        for row in range(rows):
            for column in range(columns):
                top, left = row * window, column * window
                expected = padded[image, top : top + window, left : left + window]
                assert torch.equal(next(windows), expected)
    assert next(windows, None) is None


@pytest.mark.parametrize("size", [(6, 9), (7, 11), (2, 1)])
def test_unpartition_inverts(size):
    x = torch.randn(2, *size, 4)
    assert torch.equal(unpartition(partition(x, 3), size), x)
