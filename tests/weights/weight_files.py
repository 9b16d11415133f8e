"""Models of others, narrow, and the files that they are saved in."""

import dataclasses
from functools import partial

import torch
from models import TINY, narrow, randomize
from timm.models.mvitv2 import MultiScaleVit, model_cfgs
from torch import nn

from mvitv2_det import VARIANTS, MViT

TIMM_NAMES = {
    "T": "mvitv2_tiny",
    "S": "mvitv2_small",
    "B": "mvitv2_base",
    "L": "mvitv2_large",
    "S cls": "mvitv2_small_cls",
    "B cls": "mvitv2_base_cls",
    "L cls": "mvitv2_large_cls",
    "H cls": "mvitv2_huge_cls",
}
# Their classification networks have no windows and never double the stride of K and V.
CLASSIFIER = {"adaptive_window_size": 0, "global_kv_stride_factor": 1}


def expands_in_attention(case: str) -> bool:
    return case != "L"


def timm_network(case: str, img_size: int = 224, **changes) -> MultiScaleVit:
    """timm's, with 8 channels a head."""
    arguments = narrow(case[0])
    cfg = dataclasses.replace(
        model_cfgs[TIMM_NAMES[case]], embed_dim=arguments["embed_dim"], **changes
    )
    return randomize(MultiScaleVit(cfg, img_size=(img_size, img_size), num_classes=3)).eval()


def our_network(case: str, **changes) -> MViT:
    """Ours of the same size."""
    arguments = narrow(case[0], expand_in_attention=expands_in_attention(case))
    return MViT(**(arguments | CLASSIFIER | changes)).eval()


def without_windows(**changes) -> MViT:
    """The smallest, of one block a stage."""
    return randomize(MViT(**(TINY | {"adaptive_window_size": 0} | changes))).eval()


def published(case: str, **changes) -> MViT:
    """Ours at a published size."""
    arguments = VARIANTS[case[0]].backbone_arguments() | {
        "expand_in_attention": expands_in_attention(case),
        "norm_layer": partial(nn.LayerNorm, eps=1e-6),
    }
    return MViT(**(arguments | CLASSIFIER | changes)).eval()


def mvit_state(model: MViT, *, num_classes: int = 3) -> dict[str, torch.Tensor]:
    """What facebookresearch/mvit would save of a classifier on this backbone."""
    state = {n: w.clone() for n, w in model.state_dict().items() if not n.startswith("scale")}
    width = model.scale5_norm.weight.shape[0]
    return state | {
        "norm.weight": torch.rand(width),
        "norm.bias": torch.rand(width),
        "head.projection.weight": torch.rand(num_classes, width),
        "head.projection.bias": torch.rand(num_classes),
    }


def mvit_file(state: dict[str, torch.Tensor]) -> dict:
    """With what else is in a file of facebookresearch/mvit or PySlowFast."""
    optimizer = {"state": {0: {"step": 3}}, "param_groups": [{"lr": 0.1}]}
    return {"epoch": 9, "model_state": state, "optimizer_state": optimizer, "cfg": "MVIT:\n"}


def inflated(state: dict[str, torch.Tensor], frames: int = 3) -> dict[str, torch.Tensor]:
    """A video network's weights of an image network's, as section 4.3 makes them."""
    result = {}
    for name, weight in state.items():
        if weight.dim() == 4:
            video = torch.zeros(*weight.shape[:2], frames, *weight.shape[2:])
            video[:, :, frames // 2] = weight
            weight = video
        result[name] = weight
        if name.endswith("rel_pos_h"):
            result[name.replace("_h", "_t")] = torch.rand(15, weight.shape[1])
    return result


def assert_same_weights(actual, expected):
    assert set(actual) == set(expected)
    for name, weight in expected.items():
        assert torch.equal(actual[name], weight), name
