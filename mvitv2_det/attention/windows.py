"""Non-overlapping windows over token maps (section 4.2, "Hybrid window attention").

Axes: N maps (batch × heads), H × W tokens, D channels per head, n windows per map,
w tokens along a window's side.

Maps that are no whole number of windows are padded with zeros below and to the right. As in
Detectron2's MViT the padded tokens are not masked: a padded key has a content logit of 0, its
position logits, and a value of 0. Released weights were trained so.
"""

import torch.nn.functional as F
from torch import Tensor


def partition(x: Tensor, window_size: int) -> Tensor:
    """Cuts maps into windows.

    Args:
        x: (N, H, W, D).
        window_size: w, tokens along a side.

    Returns:
        (N·n, w, w, D), windows in row-major order within each map.
    """
    _, height, width, channels = x.shape
    pad_h, pad_w = -height % window_size, -width % window_size
    if pad_h or pad_w:
        x = F.pad(x, (0, 0, 0, pad_w, 0, pad_h))
    rows, columns = (height + pad_h) // window_size, (width + pad_w) // window_size
    x = x.reshape(-1, rows, window_size, columns, window_size, channels)
    return x.transpose(2, 3).reshape(-1, window_size, window_size, channels)


def unpartition(windows: Tensor, size: tuple[int, int]) -> Tensor:
    """Puts windows back into maps and drops the padding: the inverse of :func:`partition`.

    Args:
        windows: (N·n, w, w, D).
        size: (H, W) of the maps before padding.

    Returns:
        (N, H, W, D).
    """
    _, window_size, _, channels = windows.shape
    height, width = size
    rows, columns = -(-height // window_size), -(-width // window_size)
    x = windows.reshape(-1, rows, columns, window_size, window_size, channels)
    x = x.transpose(2, 3).reshape(-1, rows * window_size, columns * window_size, channels)
    return x[:, :height, :width]
