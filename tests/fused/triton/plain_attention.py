"""Windowed attention by plain operations, window by window, for autograd and any dtype.

Made without the package's attention: it shares nothing with the kernels but the definition.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def plain_attention(q: Tensor, k: Tensor, v: Tensor, rel_h, rel_w, shape) -> Tensor:
    """(B, Hq, Wq, C), (B, Hk, Wk, C) twice, and R per axis, to (B, Hq, Wq, C)."""
    (rows, columns), (key_rows, key_columns) = shape.window_q, shape.window_kv
    bands = []
    for i, band in enumerate(q.split(rows, dim=1)):
        parts = []
        for j, queries in enumerate(band.split(columns, dim=2)):
            at = slice(i * key_rows, (i + 1) * key_rows), slice(j * key_columns, None)
            at = at[0], slice(at[1].start, at[1].start + key_columns)
            keys, values = k[:, at[0], at[1]], v[:, at[0], at[1]]
            parts.append(_window(queries, keys, values, rel_h, rel_w, shape))
        bands.append(torch.cat(parts, 2))
    return torch.cat(bands, 1)


def _window(queries: Tensor, keys: Tensor, values: Tensor, rel_h, rel_w, shape) -> Tensor:
    pad = [0, 0, 0, 0, 0, 0]
    pad[3] = shape.window_kv[1] - keys.shape[2]
    pad[5] = shape.window_kv[0] - keys.shape[1]
    real = F.pad(torch.ones(keys.shape[1:3], dtype=torch.bool, device=keys.device), pad[2:])
    q, k, v = (x.unflatten(3, (shape.heads, -1)) for x in (queries, keys, values))
    k, v = F.pad(k, (0, 0, *pad)), F.pad(v, (0, 0, *pad))
    logits = torch.einsum("byxhd,bijhd->bhyxij", q, k) * shape.scale
    if rel_h is not None:
        down, across = rel_h[: q.shape[1]], rel_w[: q.shape[2]]
        logits = logits + torch.einsum("byxhd,yid->bhyxi", q, down)[..., None]
        logits = logits + torch.einsum("byxhd,xjd->bhyxj", q, across)[..., None, :]
    if shape.mask_padding:
        logits = logits.masked_fill(~real, float("-inf"))
    weights = logits.flatten(4).softmax(-1).view(logits.shape)
    out = torch.einsum("bhyxij,bijhd->byxhd", weights, v).flatten(3)
    return out + queries if shape.residual else out
