"""Learning rates by layer, against Detectron2's own function for ViTDet and against hand counts."""

import pytest
from conftest import tiny_overrides
from detectron2.config import instantiate
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from torch import nn

from mvitv2_det import UserError, get_config
from mvitv2_det.config import apply_overrides
from mvitv2_det.engine import LayerDecay, build_model

DEPTH, RATE = 4, 0.5  # the depth of tiny_overrides


def detector(name, *overrides):
    cfg = get_config(name)
    apply_overrides(cfg, [*tiny_overrides(cfg), *overrides])
    return cfg, build_model(cfg)


def test_a_detector_has_the_factors_of_vitdet():
    _, model = detector("mask_rcnn_mvitv2_t_3x", "model.backbone.bottom_up.use_abs_pos=true")
    factor = LayerDecay(RATE, model)
    names = [name for name, _ in model.named_parameters()]
    for name in names:
        assert factor(name) == get_vit_lr_decay_rate(name, RATE, DEPTH), name
    assert len({factor(name) for name in names}) == DEPTH + 2


def test_factors_by_hand():
    _, model = detector("mask_rcnn_mvitv2_t_3x")
    factor, start = LayerDecay(RATE, model), "backbone.bottom_up."
    assert factor(start + "patch_embed.proj.weight") == 1 / 32
    assert factor(start + "blocks.0.attn.qkv.weight") == 1 / 16
    assert factor(start + "blocks.3.mlp.fc1.weight") == 1 / 2
    assert factor(start + "scale5_norm.weight") == 1
    assert factor("roi_heads.box_head.fc1.weight") == 1
    # A backbone alone has names without the start.
    assert LayerDecay(RATE, model.backbone.bottom_up)("blocks.2.norm1.weight") == 1 / 4


def test_the_rates_reach_the_optimizer_through_the_config():
    cfg, model = detector("mask_rcnn_mvitv2_t_3x", "optimizer.params.lr_factor_func.rate=0.5")
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            expected = cfg.optimizer.lr * get_vit_lr_decay_rate(name, RATE, DEPTH)
            assert rates[id(parameter)] == pytest.approx(expected, rel=1e-12), name
    # Weight decay is by kind of parameter, as before.
    tables = [p for name, p in model.named_parameters() if "rel_pos" in name]
    for group in optimizer.param_groups:
        if any(p is table for p in group["params"] for table in tables):
            assert group["weight_decay"] == 0


def test_without_decay_nothing_changes():
    assert LayerDecay(1.0, nn.Linear(2, 2))("weight") == 1.0


def test_a_model_without_blocks():
    with pytest.raises(UserError, match="the model has 0 backbones") as caught:
        LayerDecay(0.8, nn.Linear(2, 2))
    assert "\n" not in str(caught.value)
