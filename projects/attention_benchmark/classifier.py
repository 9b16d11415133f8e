"""Backbones as classifiers: the networks of the ImageNet-1K columns."""

import copy

from detectron2.config import LazyCall as L
from detectron2.modeling import SwinTransformer
from detectron2.modeling.backbone import Backbone
from omegaconf import DictConfig
from torch import Tensor, nn

from mvitv2_det import MViT


class Classifier(nn.Module):
    """The mean of the backbone's last feature map, and a linear layer (appendix B.1).

    Args:
        backbone: whose coarsest feature map is used.
        num_classes: of ImageNet-1K by default.
    """

    def __init__(self, backbone: Backbone, num_classes: int = 1000) -> None:
        super().__init__()
        self.backbone = backbone
        self.feature, shape = max(backbone.output_shape().items(), key=lambda item: item[1].stride)
        self.head = nn.Linear(shape.channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images to (B, num_classes) logits."""
        return self.head(self.backbone(images)[self.feature].mean(dim=(2, 3)))


def classifier_of(backbone: DictConfig) -> DictConfig:
    """Makes the LazyCall of a classifier from that of a detection backbone, which stays unchanged.

    In classification MViTv2 has no windows, and all blocks of a stage have the same K/V stride.
    """
    backbone = copy.deepcopy(backbone)
    if backbone._target_ is MViT:
        backbone.update(adaptive_window_size=0, global_kv_stride_factor=1, out_features=["scale5"])
    elif backbone._target_ is SwinTransformer:
        backbone.out_indices = [3]
    return L(Classifier)(backbone=backbone)
