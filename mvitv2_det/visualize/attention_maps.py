"""What one query of one block, or its class token, attends to, and pictures of it.

Axes: H × W pixels or tokens of a map, of clips T × H × W; C channels, h heads, K_h × K_w keys, of
clips K_t × K_h × K_w; D channels per head.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import cast

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from ..attention.attend import attention_logits
from ..attention.multiscale import MultiScaleAttention
from ..attention.windows import mask_terms
from ..backbone.block import MultiScaleBlock
from ..backbone.trunk import Trunk
from ..errors import UserError

_MOST_COLUMNS = 4
_PANEL = 3.6  # inches
_SHADE = 0.7  # of the image's brightness below the colours
_MARKER = "#00e5ff"  # not among the colours of the map


@dataclass(frozen=True)
class QueryAttention:
    """The attention of one query.

    Attributes:
        probabilities: (h, K_h, K_w) or (h, K_t, K_h, K_w), 0 outside of the query's window. What
            is missing to 1 went to the class token, and to the zeros that fill incomplete windows.
        seen: bool (K_h, K_w) or (K_t, K_h, K_w), the keys that the query can attend to.
        query: (row, column) of the query among the block's queries, of clips (time, row, column);
            None is the class token.
        query_side, key_side: sides in pixels of what a query and a key stand for.
        on_token: the share of the attention, mean over heads, on the class token.
        key_frames: frames that a key stands for; 1 of images.
    """

    probabilities: Tensor
    seen: Tensor
    query: tuple[int, ...] | None
    query_side: int
    key_side: int
    on_token: float = 0.0
    key_frames: int = 1

    @property
    def on_padding(self) -> float:
        """The share of the attention, mean over heads, on the zeros that fill windows."""
        on_map = self.probabilities.sum().item() / len(self.probabilities)
        return max(0.0, 1 - on_map - self.on_token)


def find_trunk(model: nn.Module) -> Trunk:
    """The MViT or ViT in a detector; a bare one, or a recogniser, itself.

    Raises:
        UserError: there is none.
    """
    for module in model.modules():
        if isinstance(module, Trunk):
            return module
    raise UserError(f"the model, a {type(model).__name__}, has no MViT or ViT of this project")


def blocks_of(trunk: Trunk) -> list[MultiScaleBlock]:
    """The blocks of a trunk, first to last."""
    return list(cast("Iterable[MultiScaleBlock]", trunk.blocks))


@torch.no_grad()
def attention_of_pixel(
    backbone: nn.Module, images: Tensor, block: int, pixel: tuple[int, ...] | None
) -> QueryAttention:
    """What the query that covers a pixel attends to in a block.

    Args:
        backbone: a backbone with or without FPN, or a recogniser of images or clips.
        images: (1, 3, H, W), or a clip (1, 3, T, H, W), normalised.
        block: index of the block, from 0.
        pixel: (y, x) in the images, (frame, y, x) in a clip; None for the class token.

    Raises:
        UserError: there is no such block, pixel or class token.
    """
    trunk = find_trunk(backbone)
    if not 0 <= block < len(trunk.blocks):
        raise UserError(f"block must be in 0 .. {len(trunk.blocks) - 1}, got {block}")
    if pixel is None and trunk.cls_token is None:
        raise UserError("the network has no class token to look from: give a position")
    sides = images.shape[2:]
    if pixel is not None and not all(
        0 <= place < side for place, side in zip(pixel, sides, strict=True)
    ):
        kind = "image" if len(sides) == 2 else "clip"
        raise UserError(f"position must lie in the {kind} of {tuple(sides)}, got {pixel}")
    incoming: list[tuple[Tensor, ...]] = []
    hook = trunk.blocks[block].register_forward_pre_hook(lambda _, inputs: incoming.append(inputs))
    try:
        backbone(images)
    finally:
        hook.remove()
    blocks = blocks_of(trunk)
    tokens = [blocks[block].norm1(part) for part in incoming[0]]
    attention = blocks[block].attn
    *frames, _, side = trunk.patch_embed.proj.stride
    side *= math.prod(earlier.spec.attention.stride_q[-1] for earlier in blocks[:block])
    query = None
    if pixel is not None:
        stride = side * attention.spec.stride_q[-1]
        # Blocks keep the number of times.
        strides = (*frames, stride, stride)
        query = tuple(place // stride for place, stride in zip(pixel, strides, strict=True))
    found = query_attention(attention, tokens[0], query, side, *tokens[1:])
    return replace(found, key_frames=frames[0] if frames else 1)


def query_attention(
    attention: MultiScaleAttention,
    x: Tensor,
    query: tuple[int, ...] | None,
    token_side: int = 1,
    token: Tensor | None = None,
) -> QueryAttention:
    """The attention of one query, computed again from the module's parts.

    Args:
        x: (1, H, W, C) or (1, T, H, W, C), what goes into the module.
        query: (row, column) or (time, row, column) among the pooled queries; None for the class
            token.
        token_side: pixels along a side of the tokens that go in.
        token: the class token (1, 1, C) that goes in beside them.
    """
    q, k, _ = attention.project_and_pool(x)
    spec = attention.spec
    key_size = k.shape[1:-1]
    keys = token_queries = None
    if token is not None:
        token_queries, keys, _ = attention.project_token(token)
    if query is not None:
        logits, places, own = _from_place(attention, q, k, query)
    elif token_queries is not None:
        own = token_queries
        logits = attention_logits(own, k, spec.scale).flatten(1)
        places = _places(key_size).flatten()
    else:
        raise ValueError("there is no class token: query must be a place")
    on_token = 0.0
    if keys is not None:
        logits = torch.cat((attention_logits(own, keys, spec.scale).flatten(1), logits), dim=1)
    weights = logits.softmax(dim=-1)
    if keys is not None:
        on_token, weights = weights[:, 0].mean().item(), weights[:, 1:]
    on_map = weights.new_zeros(len(weights), math.prod(key_size) + 1)
    on_map[:, places] = weights  # padded keys all write to place 0, which is dropped
    seen = torch.zeros(on_map.shape[1], dtype=torch.bool)
    seen[places] = (weights > 0).any(dim=0)
    return QueryAttention(
        on_map[:, 1:].unflatten(1, key_size),
        seen[1:].unflatten(0, key_size),
        query,
        token_side * spec.stride_q[-1],
        token_side * spec.stride_kv[-1],
        on_token,
    )


def _from_place(
    attention: MultiScaleAttention, q: Tensor, k: Tensor, query: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """A query's logits (h, keys of its window), the keys' places, and the query (h, 1, D)."""
    spec, sizes = attention.spec, (q.shape[1:-1], k.shape[1:-1])
    query_places, key_places = (_places(size) for size in sizes)
    masks = []
    if spec.window_size:
        queries, keys = attention.window_grids(*sizes)
        k, _ = attention.fill_windows(keys, k, k)
        q, k = queries.partition(q), keys.partition(k)
        masks = mask_terms(queries, keys, q, mask_padding=spec.mask_window_padding)
        query_places, key_places = queries.partition(query_places), keys.partition(key_places)
    # Places count from 1; what fills windows is 0.
    wanted = int(np.ravel_multi_index(query, tuple(sizes[0]))) + 1
    window, *place, _ = (query_places == wanted).nonzero()[0].tolist()
    own = window + len(query_places) * torch.arange(spec.num_heads)
    # Head by head: all queries of the window have their logits computed for the sake of one.
    of_query, own_query = (slice(None), *place), (own, *place)
    logits = torch.cat(
        [
            attention.logits(q[[n]], k[[n]], [mask[[n]] for mask in masks])[of_query]
            for n in own.tolist()
        ]
    )
    return logits.flatten(1), key_places[window].flatten(), q[own_query][:, None]


def _places(size: Sequence[int]) -> Tensor:
    """(1, H, W, 1) or (1, T, H, W, 1), the places of a map numbered from 1."""
    return torch.arange(1, math.prod(size) + 1).reshape(1, *size, 1)


def draw_attention(
    image: np.ndarray, attention: QueryAttention, title: str, file: Path | BytesIO
) -> None:
    """The mean over heads and each head, over the image, with the query marked.

    Of a clip the mean over heads is drawn at each time of the keys, over the first of the frames
    that they stand for, and the share of each time is written above it.

    Args:
        image: (H, W, 3) RGB, 0 to 255, as large as the network saw it before padding; of a clip
            (T, H, W, 3).
        attention: over that image or clip.
        title: of the picture.
        file: PNG to write.
    """
    panels = _panels_of_clip(image, attention) if image.ndim == 4 else _panels(image, attention)
    most = max(values.max() for _, _, _, values in panels) if image.ndim == 4 else None
    image = panels[0][1]
    rows = math.ceil(len(panels) / _MOST_COLUMNS)
    columns = math.ceil(len(panels) / rows)
    height = _PANEL * image.shape[0] / image.shape[1]
    # The title is wider than one panel.
    size = (max(columns * (_PANEL + 0.7), 6.5), rows * (height + 0.3) + 0.4)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=10, parse_math=False)  # a class may be named $1
    all_axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in all_axes[len(panels) :]:
        axes.set_axis_off()
    for axes, (name, picture, part, values) in zip(all_axes, panels, strict=False):
        drawn = _draw_panel(axes, picture, part, values, most)
        axes.set_title(name, fontsize=9)
        bar = figure.colorbar(drawn, ax=axes, fraction=0.046, pad=0.02)
        bar.ax.tick_params(labelsize=7)
        bar.set_label("attention of one key", fontsize=7)
    figure.savefig(file)


_Panel = tuple[str, np.ndarray, QueryAttention, np.ndarray]


def _panels(image: np.ndarray, attention: QueryAttention) -> list[_Panel]:
    """Caption, picture, attention and values (K_h, K_w) of the mean and of each head."""
    heads = attention.probabilities.numpy()
    if len(heads) == 1:
        return [("the only head", image, attention, heads[0])]
    named = [("mean over heads", heads.mean(0))]
    named += [(f"head {index}", head) for index, head in enumerate(heads)]
    return [(name, image, attention, values) for name, values in named]


def _panels_of_clip(frames: np.ndarray, attention: QueryAttention) -> list[_Panel]:
    """Likewise of the mean over heads at each time."""
    panels = []
    for time, values in enumerate(attention.probabilities.mean(0).numpy()):
        first = min(time * attention.key_frames, len(frames) - 1)
        last = min(first + attention.key_frames, len(frames)) - 1
        query = attention.query
        is_own = query is not None and query[0] == time
        # Clips have no windows; what rounding makes 0 is seen all the same.
        part = replace(
            attention,
            seen=torch.ones_like(attention.seen[time]),
            query=query[1:] if query and is_own else None,
        )
        name = f"frames {first}–{last}: {values.sum():.0%}" + (", the query's" if is_own else "")
        panels.append((name, frames[first], part, values))
    return panels


def draw_attention_of_blocks(
    backbone: nn.Module,
    images: Tensor,
    picture: np.ndarray,
    pixel: tuple[int, ...] | None,
    output: Path,
    *,
    blocks: Iterable[int],
    query: str,
) -> list[Path]:
    """Draws ``attention_block_N.png`` for each block.

    Args:
        backbone: a backbone with or without FPN, or a recogniser of images or clips.
        images: (1, 3, H, W), or a clip (1, 3, T, H, W), normalised.
        picture: the same, (H, W, 3) or (T, H, W, 3) RGB, 0 to 255, before padding.
        pixel: (y, x) or (frame, y, x) of the query; None for the class token.
        output: folder for the pictures.
        blocks: indexes, from 0.
        query: the query in words, for the titles.

    Returns:
        the files.

    Raises:
        UserError: there is no such block, pixel or class token.
        OSError: a file cannot be written.
    """
    files = []
    for block in blocks:
        files.append(output / f"attention_block_{block}.png")
        draw_attention_of_block(
            backbone, images, picture, pixel, files[-1], block=block, query=query
        )
    return files


def draw_attention_of_block(
    backbone: nn.Module,
    images: Tensor,
    picture: np.ndarray,
    pixel: tuple[int, ...] | None,
    file: Path | BytesIO,
    *,
    block: int,
    query: str,
) -> None:
    """Draws what a query attends to in one block; see :func:`draw_attention_of_blocks`.

    Args:
        backbone, images, picture, pixel, query: as there.
        file: PNG to write.
        block: index, from 0.
    """
    attention = attention_of_pixel(backbone, images, block, pixel)
    title = f"{describe_block(find_trunk(backbone), block)}; {query}"
    for share, what in ((attention.on_token, "class token"), (attention.on_padding, "padding")):
        title += f"; {share:.0%} on {what}" if share > 0.005 else ""
    draw_attention(picture, attention, title, file)


def describe_block(trunk: Trunk, block: int) -> str:
    """Says in a few words how a block attends."""
    attention = blocks_of(trunk)[block].spec.attention
    size = attention.window_size
    kind = "global" if not size else f"window of {size}×{size} tokens"
    if attention.shift:
        kind += f", shifted by {attention.shift}"
    heads = f"{attention.num_heads} head" + ("s" if attention.num_heads > 1 else "")
    return f"block {block} of {len(trunk.blocks)}: {kind}, {heads}"


def _draw_panel(
    axes: Axes,
    image: np.ndarray,
    attention: QueryAttention,
    values: np.ndarray,
    most: float | None = None,
) -> ScalarMappable:
    """One map (K_h, K_w), of values up to ``most``, over the grey image.

    Returns:
        what a colour bar is of.
    """
    height, width = image.shape[:2]
    grey = image.mean(axis=2)
    brightest = grey.min() + (np.ptp(grey) + 1) / _SHADE
    axes.imshow(grey, cmap="gray", vmin=grey.min(), vmax=brightest, extent=(0, width, height, 0))
    rows, columns = values.shape
    most = max(values.max() if most is None else most, np.finfo(values.dtype).tiny)
    opacity = np.where(attention.seen.numpy(), 0.25 + 0.45 * values / most, 0)
    colors = ScalarMappable(Normalize(0, most), cmap="inferno")
    axes.imshow(
        colors.to_rgba(values, alpha=opacity),
        extent=(0, columns * attention.key_side, rows * attention.key_side, 0),
        interpolation="nearest",
    )
    _outline(axes, _bounds(attention.seen.numpy()) * attention.key_side, "white", 1.2)
    if attention.query is not None:
        corner = np.array(attention.query) * attention.query_side
        _outline(axes, np.concatenate([corner, corner + attention.query_side]), _MARKER, 1.5)
        y, x = corner + attention.query_side / 2
        axes.plot(x, y, "+", color=_MARKER, ms=12, mew=1.8)
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    return colors


def _bounds(seen: np.ndarray) -> np.ndarray:
    """(top, left, bottom, right) in keys."""
    rows, columns = np.nonzero(seen.any(1))[0], np.nonzero(seen.any(0))[0]
    return np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])


def _outline(axes: Axes, bounds: np.ndarray, color: str, width: float) -> None:
    top, left, bottom, right = bounds
    axes.add_patch(
        Rectangle((left, top), right - left, bottom - top, fill=False, ec=color, lw=width)
    )
