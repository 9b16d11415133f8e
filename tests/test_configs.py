"""Every config there is, found by folder: loads, builds, saves, loads back, trains."""

import subprocess
import sys

import pytest
import torch
from conftest import dataset_overrides, tiny_overrides
from detectron2.config import LazyConfig, instantiate
from detectron2.utils.events import EventStorage
from marks import long_but

from mvitv2_det import VARIANTS, MViT, get_config
from mvitv2_det.config import apply_overrides, config_files
from mvitv2_det.data import prepare_datasets
from mvitv2_det.engine import build_model

NAMES = sorted(config_files())
# Their networks differ: test_ablation_configs.py trains them.
ABLATIONS = {name for name, file in config_files().items() if file.parent.name == "ablations"}
PUBLISHED = [name for name in NAMES if "mvitv2" in name]
# One of each kind.
TRAINED_QUICKLY = {"mask_rcnn_mvitv2_t_3x", "cascade_mask_rcnn_mvitv2_s_3x"}

# One per row of Table 5, and of Table A.1, and H without large-scale jitter.
EXPECTED = {
    "mask_rcnn_mvitv2_t_3x": "T",
    "mask_rcnn_mvitv2_s_3x": "S",
    "mask_rcnn_mvitv2_b_3x": "B",
    "mask_rcnn_mvitv2_l_3x": "L",
    "mask_rcnn_mvitv2_l_in21k_3x": "L",
    "cascade_mask_rcnn_mvitv2_t_3x": "T",
    "cascade_mask_rcnn_mvitv2_s_3x": "S",
    "cascade_mask_rcnn_mvitv2_b_3x": "B",
    "cascade_mask_rcnn_mvitv2_b_in21k_3x": "B",
    "cascade_mask_rcnn_mvitv2_l_3x": "L",
    "cascade_mask_rcnn_mvitv2_l_in21k_lsj_50ep": "L",
    "cascade_mask_rcnn_mvitv2_l_in21k_lsj_50ep_softnms_ms": "L",
    "cascade_mask_rcnn_mvitv2_h_3x": "H",
    "cascade_mask_rcnn_mvitv2_h_in21k_lsj_3x": "H",
}
# ViTDet's recipe: size, iterations and learning rate, from Detectron2's projects/ViTDet.
VITDET = {
    "cascade_mask_rcnn_mvitv2_b_in21k_100ep": ("B", 184375, 8e-5),
    "cascade_mask_rcnn_mvitv2_l_in21k_50ep": ("L", 92187, 8e-5),
    "cascade_mask_rcnn_mvitv2_h_in21k_36ep": ("H", 67500, 1.6e-4),
    "lvis_cascade_mask_rcnn_mvitv2_b_in21k_100ep": ("B", 156250, 1e-4),
    "lvis_cascade_mask_rcnn_mvitv2_l_in21k_50ep": ("L", 78125, 4e-5),
    "lvis_cascade_mask_rcnn_mvitv2_h_in21k_50ep": ("H", 78125, 2e-5),
}


def test_there_is_one_for_each_row():
    assert set(PUBLISHED) == set(EXPECTED) | set(VITDET)


@pytest.mark.parametrize("name", EXPECTED)
def test_size_and_recipe(name):
    cfg = get_config(name)
    variant = EXPECTED[name]
    bottom_up = cfg.model.backbone.bottom_up
    for key, value in VARIANTS[variant].backbone_arguments().items():
        assert bottom_up[key] == value
    # L exists twice: the ImageNet-1K weights and the paper's costs expand in the MLP.
    in_mlp = variant == "L" and "in21k" not in name
    assert bottom_up.get("expand_in_attention", True) is not in_mlp
    pretraining = "in21k" if "in21k" in name or variant == "H" else "in1k"
    assert cfg.train.init_checkpoint.endswith(f"MViTv2_{variant}_{pretraining}.pyth")
    assert cfg.optimizer.lr == (1e-4 if variant == "L" else 1.6e-4)
    assert cfg.train.max_iter == (92187 if "50ep" in name else 67500)
    assert cfg.dataloader.train.total_batch_size == 64
    assert ("recompute_boxes" in cfg.dataloader.train.mapper) == ("lsj" in name)


@pytest.mark.parametrize("name", VITDET)
def test_vitdets_recipe(name):
    """Beside Detectron2's files, where they are at hand: test_detectron2_configs.py."""
    cfg = get_config(name)
    variant, iterations, rate = VITDET[name]
    for key, value in VARIANTS[variant].backbone_arguments().items():
        assert cfg.model.backbone.bottom_up[key] == value
    assert cfg.train.init_checkpoint.endswith(f"MViTv2_{variant}_in21k.pyth")
    assert (cfg.train.max_iter, cfg.optimizer.lr) == (iterations, rate)
    assert cfg.dataloader.train.total_batch_size == 64
    assert cfg.model.backbone.norm == "LN" and cfg.model.backbone.square_pad == 1024
    heads = cfg.model.roi_heads
    assert {head.conv_norm for head in (*heads.box_heads, heads.mask_head)} == {"LN"}
    assert cfg.model.proposal_generator.head.conv_dims == [-1, -1]
    assert cfg.dataloader.train.mapper.augmentations[2].pad is False
    assert cfg.optimizer.params.overrides == {"pos_embed": {"weight_decay": 0.0}}
    is_lvis = name.startswith("lvis")
    assert heads.num_classes == (1203 if is_lvis else 80)
    assert ("sampler" in cfg.dataloader.train) is is_lvis
    for predictor in heads.box_predictors:
        assert predictor.get("use_sigmoid_ce", False) is is_lvis
        assert predictor.get("use_fed_loss", False) is is_lvis


# Ablations and networks of size L and H are made of the same parts as the others.
OFTEN = long_but(
    [name for name in NAMES if name not in ABLATIONS and "_l_" not in name and "_h_" not in name],
    NAMES,
)


@pytest.mark.parametrize("name", OFTEN)
def test_saves_to_yaml_and_loads_back(name, tmp_path):
    cfg = get_config(name)
    file = tmp_path / "config.yaml"
    LazyConfig.save(cfg, str(file))
    assert not file.with_suffix(".yaml.pkl").exists()
    again = LazyConfig.load(str(file))
    # Detectron2's Swin reads values while it is built.
    with torch.device("cpu" if "swin_b" in name else "meta"):
        models = [instantiate(config.model) for config in (cfg, again)]
    assert str(models[0]) == str(models[1])
    resaved = tmp_path / "again.yaml"
    LazyConfig.save(again, str(resaved))
    assert resaved.read_text() == file.read_text()
    schedules = [instantiate(config.lr_multiplier) for config in (cfg, again)]
    for tenth in range(11):
        assert schedules[0](tenth / 10) == schedules[1](tenth / 10)


@pytest.mark.parametrize("name", long_but(TRAINED_QUICKLY, sorted(set(NAMES) - ABLATIONS)))
def test_builds_narrow_and_trains_a_step(name, coco_folder):
    cfg = get_config(name)
    apply_overrides(cfg, tiny_overrides(cfg) + dataset_overrides(coco_folder))
    prepare_datasets(cfg, training=True)
    model = build_model(cfg).train()
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    with EventStorage():
        losses = model(next(iter(instantiate(cfg.dataloader.train))))
    sum(losses.values()).backward()
    optimizer.step()
    assert all(loss.isfinite() for loss in losses.values())
    stages = 3 if "cascade" in name else 1
    assert sum("loss_cls" in key for key in losses) == stages
    assert "loss_mask" in losses


def test_weight_decay_exempts_norms_and_positions_but_no_bias():
    cfg = get_config("mask_rcnn_mvitv2_t_3x")
    with torch.device("meta"):
        model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    groups = instantiate(cfg.optimizer).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in model.backbone.bottom_up.named_parameters():
        exempt = "norm" in name or "rel_pos" in name
        assert decay[id(parameter)] == (0.0 if exempt else 0.1), name


def test_schedule_of_the_3x_recipe():
    """Warm-up over 250 iterations, then 1, 0.1 from iteration 52500 and 0.01 from 62500."""
    schedule = instantiate(get_config("mask_rcnn_mvitv2_t_3x").lr_multiplier)
    factor = {iteration: schedule(iteration / 67500) for iteration in (0, 250, 52400, 52600, 62600)}
    assert factor == pytest.approx({0: 0.001, 250: 1, 52400: 1, 52600: 0.1, 62600: 0.01})


def test_warm_up_keeps_its_length_when_the_run_is_shortened():
    cfg = get_config("mask_rcnn_mvitv2_t_3x")
    cfg.train.max_iter = 1000
    schedule = instantiate(cfg.lr_multiplier)
    assert schedule(0.125) == pytest.approx(0.5, abs=0.01)
    assert schedule(0.26) == 1
    assert schedule(0.79) == pytest.approx(0.1)


def test_our_backbone_in_detectron2s_place():
    """A config that names Detectron2's MViT changes one import."""
    from detectron2.modeling import MViT as ReferenceMViT

    cfg = get_config("mask_rcnn_mvitv2_t_3x")
    assert cfg.model.backbone.bottom_up._target_ is MViT
    ours = instantiate(cfg.model.backbone.bottom_up)
    cfg.model.backbone.bottom_up._target_ = ReferenceMViT
    reference = instantiate(cfg.model.backbone.bottom_up)
    assert list(ours.state_dict()) == list(reference.state_dict())


@pytest.mark.long
def test_nothing_imports_the_model_zoo():
    """``detectron2.model_zoo`` needs ``pkg_resources``, which newer setuptools dropped."""
    script = (
        "import sys; from mvitv2_det.config import config_files, load_config\n"
        "[load_config(str(file)) for file in config_files().values()]\n"
        "assert 'detectron2.model_zoo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)
