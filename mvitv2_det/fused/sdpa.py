"""One fused attention call, with decomposed relative positions and without a bias tensor.

The logit that a query q has along an axis for place p, q · R[p], becomes a further channel of the
query. The keys have there the one-hot code of their own place, so that the product of the widened
queries and keys is content plus positions, and no map of queries × keys is ever written.

Axes: B images, H × W tokens, C = h·d channels of h heads, n windows, Q and K tokens of a window.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..caching import cached_per_device
from ..sizes import cropped, divide_up, surely_equal
from .shape import AttentionShape

_ALIGNMENT = 8  # channels; the fused GPU kernels take multiples of it


def windowed_sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    embeddings: Sequence[Tensor],
    shape: AttentionShape,
    token: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Attention within windows over pooled maps, without the residual.

    Args:
        q, k, v: (B, H, W, C) with heads side by side, each with its own H and W.
        embeddings: R of Eq. 4 per axis, (Q_a, K_a, d), or none.
        shape: heads, scale and windows.
        token: k and v of a class token, (B·h, 1, d) each: a key without a position, of the only
            window.

    Returns:
        (B, H, W, C) of q's size.
    """
    queries, keys, values = (
        _to_windows(x, size, shape.heads)
        for x, size in ((q, shape.window_q), (k, shape.window_kv), (v, shape.window_kv))
    )
    content, channels = queries.flatten(2, 3) * shape.scale, values.shape[-1]
    keys, values = keys.flatten(2, 3), values.flatten(2, 3)
    if embeddings:
        rows, columns = (embedding.to(queries.dtype) for embedding in embeddings)
        along_h = torch.einsum("nhrcd,rkd->nhrck", queries, rows)
        along_w = torch.einsum("nhrcd,ckd->nhrck", queries, columns)
        content = torch.cat([content, along_h.flatten(2, 3), along_w.flatten(2, 3)], dim=-1)
        places = one_hot_places(shape.window_kv, device=keys.device).to(keys.dtype)
        keys = torch.cat([keys, places.expand(*keys.shape[:2], -1, -1)], dim=-1)
    if token is not None:
        token_k, token_v = (part.unflatten(0, (-1, shape.heads)) for part in token)
        keys = torch.cat([keys, F.pad(token_k, (0, keys.shape[-1] - channels))], dim=2)
        values = torch.cat([values, token_v], dim=2)
    width = divide_up(content.shape[-1], _ALIGNMENT) * _ALIGNMENT
    content, keys, values = (
        x if surely_equal(x.shape[-1:], (width,)) else F.pad(x, (0, width - x.shape[-1]))
        for x in (content, keys, values)
    )
    z = F.scaled_dot_product_attention(content, keys, values, scale=1.0)[..., :channels]
    return _from_windows(z.unflatten(2, shape.window_q), q.shape)


@cached_per_device
def one_hot_places(size: tuple[int, int], *, device: torch.device) -> Tensor:
    """(Kh·Kw, Kh + Kw) float32: the one-hot codes of each key's row and column."""
    height, width = size
    rows = torch.eye(height, device=device)[:, None].expand(-1, width, -1)
    columns = torch.eye(width, device=device)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


def _to_windows(x: Tensor, size: tuple[int, int], heads: int) -> Tensor:
    """(B, H, W, C) to (B·n, h, w_h, w_w, d), padded with zeros."""
    height, width = size
    rows, columns = divide_up(x.shape[1], height), divide_up(x.shape[2], width)
    pad_h, pad_w = rows * height - x.shape[1], columns * width - x.shape[2]
    if not surely_equal((pad_h, pad_w), (0, 0)):
        x = F.pad(x, (0, 0, 0, pad_w, 0, pad_h))
    x = x.unflatten(3, (heads, -1)).unflatten(2, (columns, width)).unflatten(1, (rows, height))
    return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(0, 2)


def _from_windows(windows: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of :func:`_to_windows`: (B, H, W, C) of the given shape."""
    batch, height, width, _ = shape
    rows, columns = divide_up(height, windows.shape[2]), divide_up(width, windows.shape[3])
    x = windows.unflatten(0, (batch, rows, columns)).permute(0, 1, 4, 2, 5, 3, 6)
    return cropped(x.flatten(5, 6).flatten(3, 4).flatten(1, 2), height, width)
