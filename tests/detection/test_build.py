"""The yacs path, with Detectron2's own trainer and predictor."""

import inspect

import numpy as np
import pytest
import torch
from conftest import write_coco
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone
from models import randomize
from scripts import load_script

from mvitv2_det import VARIANTS, MViT, MViTFPN, add_mvitv2_config
from mvitv2_det.config import config_folder
from mvitv2_det.errors import UserError
from mvitv2_det.weights import convert_weights

YAML = config_folder() / "yacs" / "mask_rcnn_mvitv2_t_3x.yaml"


def yacs_config():
    cfg = get_cfg()
    add_mvitv2_config(cfg)
    cfg.merge_from_file(str(YAML))
    cfg.MODEL.DEVICE = "cpu"
    return cfg


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant):
    cfg = yacs_config()
    cfg.MODEL.MVIT.VARIANT = variant
    with torch.device("meta"):
        backbone = build_backbone(cfg)
    assert isinstance(backbone, MViTFPN)
    assert isinstance(backbone.bottom_up, MViT)
    assert len(backbone.bottom_up.blocks) == VARIANTS[variant].depth
    assert backbone.bottom_up.blocks[0].norm1.eps == 1e-6


def test_every_key_reaches_the_backbone():
    """Each key but VARIANT and NORM_EPS is a keyword of MViT, with MViT's default; none lacks."""
    cfg = yacs_config()
    keywords = inspect.signature(MViT).parameters
    elsewhere = {"in_chans", "freeze_at", "norm_layer", "act_layer"}
    expected = {name.upper() for name in keywords if name not in elsewhere}
    assert set(cfg.MODEL.MVIT) == expected | {"VARIANT", "NORM_EPS"}
    for key, value in cfg.MODEL.MVIT.items():
        if key not in ("VARIANT", "NORM_EPS") and value is not None:
            assert value == keywords[key.lower()].default, key
    cfg.MODEL.MVIT.USE_ABS_POS = True
    cfg.MODEL.MVIT.DROP_PATH_RATE = 0.5
    cfg.MODEL.MVIT.ATTENTION_BACKEND = "reference"
    cfg.MODEL.MVIT.PATCH_KERNEL = (9, 9)
    cfg.MODEL.BACKBONE.FREEZE_AT = 1
    backbone = BACKBONE_REGISTRY.get("build_mvitv2_backbone")(cfg, ShapeSpec(channels=4))
    assert backbone.pos_embed is not None
    assert backbone.blocks[-1].drop_path.drop_prob == 0.5
    assert backbone.patch_embed.proj.in_channels == 4
    assert backbone.patch_embed.proj.kernel_size == (9, 9)
    assert {block.backend for block in backbone.blocks} == {"reference"}
    assert not backbone.patch_embed.proj.weight.requires_grad


def test_unknown_variant():
    cfg = yacs_config()
    cfg.MODEL.MVIT.VARIANT = "XL"
    with pytest.raises(ValueError, match="must be one of T, S, B, L, H, got 'XL'"):
        build_backbone(cfg)


@pytest.fixture
def tiny_cfg(tmp_path):
    """The YAML, narrow and on four small images."""
    write_coco(tmp_path, "train", 4)
    name = "tiny_yacs"
    register_coco_instances(name, {}, str(tmp_path / "train.json"), str(tmp_path / "train"))
    cfg = yacs_config()
    options = {
        "DATASETS.TRAIN": (name,),
        "DATASETS.TEST": (name,),
        "OUTPUT_DIR": str(tmp_path / "out"),
        "MODEL.WEIGHTS": "",
        "MODEL.MVIT.EMBED_DIM": 8,
        "MODEL.FPN.OUT_CHANNELS": 8,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
        "MODEL.ROI_HEADS.NUM_CLASSES": 2,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 8,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 2,
        "SOLVER.STEPS": (),
        "SOLVER.AMP.ENABLED": False,
        "INPUT.MIN_SIZE_TRAIN": (48,),
        "INPUT.MIN_SIZE_TEST": 48,
        "DATALOADER.NUM_WORKERS": 0,
    }
    for key, value in options.items():
        cfg.merge_from_list([key, value])
    yield cfg
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.mark.parametrize("adamw", [False, True])
def test_two_iterations_and_a_prediction(tiny_cfg, adamw):
    """Detectron2's DefaultTrainer and DefaultPredictor as they are, and the project's AdamW."""
    project = load_script("projects/yacs/train_net.py").Trainer

    class Plain(DefaultTrainer):
        build_evaluator = project.build_evaluator

    trainer = (project if adamw else Plain)(tiny_cfg)
    before = trainer.model.backbone.bottom_up.blocks[0].attn.qkv.weight.clone()
    trainer.train()
    assert trainer.iter == 2
    assert not torch.equal(trainer.model.backbone.bottom_up.blocks[0].attn.qkv.weight, before)
    if adamw:
        groups = trainer.optimizer.param_groups
        decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        block = trainer.model.backbone.bottom_up.blocks[0]
        assert decay[id(block.attn.rel_pos_h)] == decay[id(block.norm1.weight)] == 0
        assert decay[id(block.attn.qkv.weight)] == decay[id(block.attn.qkv.bias)] == 0.1

    tiny_cfg.MODEL.WEIGHTS = f"{tiny_cfg.OUTPUT_DIR}/model_final.pth"
    predicted = DefaultPredictor(tiny_cfg)(np.full((50, 70, 3), 127, np.uint8))["instances"]
    assert predicted.image_size == (50, 70)
    assert predicted.pred_masks.shape[1:] == (50, 70)


def test_weights_of_any_source_go_through_the_projects_loader(tiny_cfg, tmp_path):
    """Those of timm's names, of which Detectron2's own loader would load next to nothing."""
    script = load_script("projects/yacs/train_net.py")
    backbone = build_backbone(tiny_cfg).bottom_up
    convert_weights(randomize(backbone), tmp_path / "timm.pth", to="timm")
    tiny_cfg.MODEL.WEIGHTS = str(tmp_path / "timm.pth")
    trainer = script.Trainer(tiny_cfg)
    trainer.resume_or_load(resume=False)
    loaded = trainer.model.backbone.bottom_up.state_dict()
    for name, value in backbone.state_dict().items():
        assert torch.equal(loaded[name], value) is not name.startswith("scale"), name
    tiny_cfg.MODEL.WEIGHTS = "mvitv2_t_in22k"
    with pytest.raises(UserError, match="did you mean 'mvitv2_t_in1k'"):
        trainer.resume_or_load(resume=False)


def test_a_yacs_run_of_other_classes_is_not_evaluated(tiny_cfg, tmp_path):
    script = load_script("projects/yacs/train_net.py")
    with torch.no_grad():
        torch.save({"model": script.Trainer.build_model(tiny_cfg).state_dict()}, tmp_path / "m.pth")
    tiny_cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    tiny_cfg.MODEL.WEIGHTS = str(tmp_path / "m.pth")
    report = script.load(tiny_cfg, script.Trainer.build_model(tiny_cfg))
    with pytest.raises(UserError, match=r"m.pth know 2 classes, the config's model 3"):
        report.check_complete()
