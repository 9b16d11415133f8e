"""Every config of the ablations' rows, found by folder: shrunken, it trains and tests."""

from functools import cache

import pytest
import torch
from detectron2.config import instantiate
from detectron2.modeling import SwinTransformer
from detectron2.utils.events import EventStorage
from marks import long_but
from omegaconf import DictConfig

from mvitv2_det import MViT, ViT, get_config
from mvitv2_det.config import config_files, config_folder
from projects.attention_benchmark.tables import read_tables
from projects.attention_benchmark.workloads import make_detection_images

ABLATIONS = sorted(file.stem for file in (config_folder() / "ablations").glob("*.py"))

# One block a stage; windows that a map of 80×96 pixels has several of, and pads.
SHRUNKEN = {
    MViT: {
        "embed_dim": 8,
        "depth": 4,
        "num_heads": 1,
        "last_block_indexes": [0, 1, 2, 3],
    },
    ViT: {"embed_dim": 16, "depth": 4, "num_heads": 2},
    SwinTransformer: {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]},
}
LAST_CHANNELS = {MViT: 64, ViT: 16}


def network_of(backbone: DictConfig) -> DictConfig:
    """The LazyCall of the network under a pyramid or two."""
    return network_of(backbone.bottom_up) if "bottom_up" in backbone else backbone


def shrink(cfg: DictConfig) -> DictConfig:
    """The config's detector with a narrow backbone and narrow heads, in place."""
    model = cfg.model
    network = network_of(model.backbone)
    kind = network._target_
    network.update(SHRUNKEN[kind])
    if network.get("adaptive_window_size", 56) and kind is MViT:
        network.adaptive_window_size = 16
    if network.get("window_size"):
        network.window_size = 4
    if network is model.backbone:  # single scale
        channels = LAST_CHANNELS[kind]
        model.proposal_generator.head.in_channels = channels
        model.roi_heads.box_head.input_shape.channels = channels
        model.roi_heads.mask_head.input_shape.channels = channels
    else:
        model.backbone.out_channels = 8
    model.roi_heads.mask_head.conv_dims = [8, 8]
    model.roi_heads.box_head.fc_dims = [16]
    model.roi_heads.box_predictor.input_shape.channels = 16
    model.roi_heads.batch_size_per_image = 8
    model.proposal_generator.update(
        batch_size_per_image=16, pre_nms_topk=[50, 50], post_nms_topk=[20, 20]
    )
    return cfg


@cache
def rows():
    return [(table, row) for table in read_tables() for row in table.rows]


def test_every_row_has_a_config_and_every_config_a_row():
    detectors = {row.config for table, row in rows() if table.task == "detection"}
    assert detectors <= set(config_files())
    assert set(ABLATIONS) <= detectors


def test_rows_of_a_table_are_different_networks():
    for table in read_tables():
        configs = [row.config for row in table.rows]
        assert len(set(configs)) == len(configs), table.title


@pytest.mark.parametrize("name", long_but(ABLATIONS[::6], ABLATIONS))
def test_trains_a_step_and_tests(name):
    cfg = shrink(get_config(name))
    model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    images = make_detection_images(batch=2, image_size=(80, 96))
    with EventStorage():
        losses = model.train()(images)
    sum(losses.values()).backward()
    assert {"loss_rpn_cls", "loss_cls", "loss_mask"} <= set(losses)
    assert all(loss.isfinite() for loss in losses.values())
    # A parameter without a gradient would stop training on several GPUs.
    assert not [key for key, weight in model.named_parameters() if weight.grad is None]
    optimizer.step()
    with torch.no_grad():
        results = model.eval()(images)
    assert [result["instances"].image_size for result in results] == [(80, 96)] * 2


@pytest.mark.parametrize("name", ABLATIONS)
def test_recipe_is_that_of_the_default_row(name):
    cfg, default = get_config(name), get_config("mask_rcnn_mvitv2_s_3x")
    for key in ("dataloader", "lr_multiplier"):
        assert cfg[key] == default[key]
    assert (cfg.train.max_iter, cfg.optimizer.lr) == (67500, 1.6e-4)


def test_positions_are_not_decayed():
    """Swin's bias tables, and both kinds of relative position tables."""
    for name in ("mask_rcnn_swin_b", "mask_rcnn_s_joint_rel_pos", "mask_rcnn_s_rel_pos_qkv"):
        cfg = shrink(get_config(name))
        cfg.optimizer.params.model = model = instantiate(cfg.model)
        groups = instantiate(cfg.optimizer).param_groups
        decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        tables = [
            weight
            for key, weight in model.named_parameters()
            if "rel_pos" in key or "relative_position" in key
        ]
        assert tables and not any(decay[id(table)] for table in tables), name
