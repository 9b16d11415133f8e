"""Pictures of feature maps: the norms of the tokens, and their principal components as colours.

Axes: C channels, H × W tokens.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

_PANEL = 3.0  # inches
_CLIPPED = (0.01, 0.99)  # quantiles between which colours vary, so that outliers do not matter


def norm_map(features: Tensor) -> Tensor:
    """Computes the norm of each token's features: (C, H, W) to (H, W)."""
    return features.norm(dim=0)


def pca_colors(features: Tensor) -> Tensor:
    """Maps the three principal components of the tokens' features to red, green and blue.

    Args:
        features: feature map (C, H, W). With fewer than three channels or tokens, the remaining
            colours are 0.

    Returns:
        Colours (H, W, 3) in [0, 1]; tokens with similar features have similar colours. The sign
        of a component is set so that its largest channel is positive, which makes the colours
        reproducible.
    """
    tokens = features.flatten(1).T
    tokens = tokens - tokens.mean(0)
    _, _, directions = torch.linalg.svd(tokens, full_matrices=False)
    directions = directions[:3]
    largest = directions.abs().argmax(1, keepdim=True)
    components = tokens @ (directions * directions.gather(1, largest).sign()).T
    low, high = torch.quantile(components, torch.tensor(_CLIPPED), dim=0)
    scaled = ((components - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    colors = torch.zeros(len(tokens), 3)
    colors[:, : scaled.shape[1]] = scaled
    return colors.unflatten(0, features.shape[1:])


def draw_feature_maps(
    image: np.ndarray,
    features: Mapping[str, Tensor],
    strides: Mapping[str, int],
    title: str,
    file: Path,
) -> None:
    """Draws the norm and the principal components of each feature map, beside the image.

    Args:
        image: RGB image (H, W, 3), values 0 to 255, in the size that the network saw before
            padding.
        features: feature maps (C, H / stride, W / stride) by name, fine to coarse.
        strides: strides of the feature maps in pixels, by name.
        title: title of the picture.
        file: PNG file to write.
    """
    height, width = image.shape[:2]
    columns = len(features) + 1
    panel_height = _PANEL * height / width
    figure = Figure(
        figsize=(columns * (_PANEL + 0.4), 2 * (panel_height + 0.15) + 0.4),
        dpi=110,
        layout="constrained",
    )
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(2, columns, squeeze=False)
    axes[0, 0].imshow(image.astype(np.uint8))
    axes[0, 0].set_title("image", fontsize=9)
    axes[1, 0].set_axis_off()
    for column, (name, values) in enumerate(features.items(), start=1):
        rows_columns = [side * strides[name] for side in values.shape[1:]]
        extent = (0, rows_columns[1], rows_columns[0], 0)
        norms = axes[0, column].imshow(norm_map(values).numpy(), cmap="viridis", extent=extent)
        bar = figure.colorbar(norms, ax=axes[0, column], fraction=0.046, pad=0.02)
        bar.ax.tick_params(labelsize=7)
        axes[0, column].set_title(f"{name}, stride {strides[name]}: norm", fontsize=9)
        axes[1, column].imshow(pca_colors(values).numpy(), extent=extent)
        axes[1, column].set_title("three main components as RGB", fontsize=9)
    for one in axes.ravel():
        if one.axison:
            one.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    figure.savefig(file)
