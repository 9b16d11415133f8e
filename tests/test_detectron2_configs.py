"""Detectron2's own MViTv2 configs, with one import changed; and ours of the same recipes.

Its files are read where a checkout is at hand: in the folder that $DETECTRON2_SOURCE names, in
detectron2/ beside this checkout, or in shared/detectron2/. Each model is narrow, of four blocks.
"""

import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from detectron2.modeling import MViT as Detectron2MViT
from marks import long_but
from models import randomize
from omegaconf import OmegaConf

from mvitv2_det import MViT, get_config
from mvitv2_det.config import load_config
from mvitv2_det.engine.validate import check_settings

BESIDE = Path(__file__).parents[2]
FOLDERS = (os.environ.get("DETECTRON2_SOURCE"), BESIDE / "detectron2", BESIDE / "shared/detectron2")
IMPORT, OURS = "from detectron2.modeling import MViT\n", "from mvitv2_det import MViT\n"

MVITV2 = (
    "mask_rcnn_mvitv2_t_3x",
    "cascade_mask_rcnn_mvitv2_t_3x",
    "cascade_mask_rcnn_mvitv2_s_3x",
    "cascade_mask_rcnn_mvitv2_b_3x",
    "cascade_mask_rcnn_mvitv2_b_in21k_3x",
    "cascade_mask_rcnn_mvitv2_l_in21k_lsj_50ep",
    "cascade_mask_rcnn_mvitv2_h_in21k_lsj_3x",
)
VITDET = (
    "COCO/cascade_mask_rcnn_mvitv2_b_in21k_100ep",
    "COCO/cascade_mask_rcnn_mvitv2_l_in21k_50ep",
    "COCO/cascade_mask_rcnn_mvitv2_h_in21k_36ep",
    "LVIS/cascade_mask_rcnn_mvitv2_b_in21k_100ep",
    "LVIS/cascade_mask_rcnn_mvitv2_l_in21k_50ep",
    "LVIS/cascade_mask_rcnn_mvitv2_h_in21k_50ep",
)
FILES = {
    **{f"MViTv2/configs/{name}.py": name for name in MVITV2},
    **{f"ViTDet/configs/{name}.py": name.replace("LVIS/", "lvis_") for name in VITDET},
}
FILES = {file: name.removeprefix("COCO/") for file, name in FILES.items()}
# One of each kind; the others differ in their numbers.
QUICK = ("mask_rcnn_mvitv2_t_3x", "cascade_mask_rcnn_mvitv2_s_3x", f"{VITDET[3]}")
DETECTED = long_but([file for file in FILES if any(name in file for name in QUICK)], FILES)


@pytest.fixture(scope="module")
def projects(tmp_path_factory):
    """The projects' configs, with one import changed in each project."""
    source = next((Path(f) for f in FOLDERS if f and (Path(f) / "projects/MViTv2").is_dir()), None)
    if source is None:
        pytest.skip("no checkout of Detectron2: $DETECTRON2_SOURCE names none")
    target = tmp_path_factory.mktemp("projects")
    for project in ("MViTv2", "ViTDet"):
        shutil.copytree(source / "projects" / project, target / project)
        changed = [f for f in (target / project).rglob("*.py") if IMPORT in f.read_text()]
        assert len(changed) == 1
        changed[0].write_text(changed[0].read_text().replace(IMPORT, OURS))
    return target


def load(projects, file):
    cfg = load_config(str(projects / file))
    assert cfg.model.backbone.bottom_up._target_ is MViT
    return cfg


def detectron2s(cfg):
    """The same config with the import as it was."""
    cfg = cfg.copy()
    cfg.model.backbone.bottom_up._target_ = Detectron2MViT
    return cfg


def shapes(model):
    return {name: value.shape for name, value in model.state_dict().items()}


@pytest.mark.usefixtures("without_memory")
@pytest.mark.parametrize(
    "file",
    [pytest.param(f, marks=pytest.mark.long if re.search("_[lh]_", f) else ()) for f in FILES],
)
def test_it_loads_and_builds_the_same_parameters(projects, file):
    """Three times: with our backbone, with Detectron2's, and as our config of that name."""
    cfg = load(projects, file)
    theirs = detectron2s(cfg)
    # That of H wraps blocks by a package of its own to checkpoint them.
    theirs.model.backbone.bottom_up.use_act_checkpoint = False
    expected = shapes(instantiate(theirs.model))
    assert shapes(instantiate(cfg.model)) == expected
    assert shapes(instantiate(get_config(FILES[file]).model)) == expected


@pytest.mark.parametrize("file", FILES)
def test_its_numbers_are_those_of_our_config(projects, file):
    """Schedule, optimizer, loaders and heads: all but how they are written down."""
    theirs, ours = load(projects, file), get_config(FILES[file])
    theirs.train.device = "cpu"
    check_settings(theirs, training=True)
    keys = [
        "train.max_iter",
        "train.init_checkpoint",
        "train.eval_period",
        "optimizer.weight_decay",
        "dataloader.train.total_batch_size",
        "dataloader.train.dataset.names",
        "dataloader.train.mapper.image_format",
        "dataloader.train.mapper.recompute_boxes",
        "dataloader.test.dataset.names",
        "dataloader.evaluator.max_dets_per_image",
        "model.pixel_mean",
        "model.pixel_std",
        "model.input_format",
        "model.backbone.norm",
        "model.backbone.square_pad",
        "model.roi_heads.num_classes",
        "model.roi_heads.box_predictors.0.test_score_thresh",
        "model.roi_heads.box_predictors.0.test_topk_per_image",
        "model.roi_heads.box_predictors.2.use_sigmoid_ce",
        "model.roi_heads.box_predictors.2.use_fed_loss",
        "model.backbone.bottom_up.drop_path_rate",
        "dataloader.train.sampler.repeat_factors.repeat_thresh",
    ]
    for key in keys:
        assert OmegaConf.select(ours, key) == OmegaConf.select(theirs, key), key
    for tenth in (0, 0.0005, 0.5, 0.8, 0.9, 0.95, 1):
        schedules = [instantiate(cfg.lr_multiplier)(tenth) for cfg in (theirs, ours)]
        assert schedules[0] == pytest.approx(schedules[1], rel=1e-4), tenth
    assert ours.optimizer.lr == theirs.optimizer.lr
    for one, other in zip(
        ours.dataloader.train.mapper.augmentations + ours.dataloader.test.mapper.augmentations,
        theirs.dataloader.train.mapper.augmentations + theirs.dataloader.test.mapper.augmentations,
        strict=True,
    ):
        assert called(one) == called(other)


def called(node):
    """What a config calls, and with what, however that is written down."""
    if OmegaConf.is_list(node) or isinstance(node, (list, tuple)):
        return [called(one) for one in node]
    if not OmegaConf.is_dict(node):
        return node
    target = node._target_
    name = target if isinstance(target, str) else target.__name__
    arguments = {key: called(node[key]) for key in node if key != "_target_"}
    return name.rpartition(".")[2], arguments


def test_weight_decay_is_that_of_detectron2s_config(projects):
    """ViTDet's recipe decays the relative positions, that of MViTv2 does not."""
    for file in ("MViTv2/configs/mask_rcnn_mvitv2_t_3x.py", f"ViTDet/configs/{VITDET[0]}.py"):
        decays = []
        for cfg in (load(projects, file), get_config(FILES[file])):
            cfg = narrow(cfg)
            cfg.optimizer.params.model = model = instantiate(cfg.model)
            names = {id(parameter): name for name, parameter in model.named_parameters()}
            groups = instantiate(cfg.optimizer).param_groups
            decays.append({names[id(p)]: g["weight_decay"] for g in groups for p in g["params"]})
        assert decays[0] == decays[1]
        assert decays[0]["backbone.bottom_up.blocks.0.attn.rel_pos_h"] == (
            0.1 if "ViTDet" in file else 0.0
        )


def narrow(cfg):
    bottom_up, heads, rpn = (
        cfg.model.backbone.bottom_up,
        cfg.model.roi_heads,
        cfg.model.proposal_generator,
    )
    bottom_up.update(embed_dim=8, num_heads=1, depth=4, last_block_indexes=(0, 1, 2, 3))
    bottom_up.use_act_checkpoint = False
    if "square_pad" in cfg.model.backbone:
        cfg.model.backbone.square_pad = 128
    rpn.update(pre_nms_topk=(50, 50), post_nms_topk=(20, 20))
    for head in heads.get("box_heads", []):
        head.conv_dims = [16]
    heads.mask_head.conv_dims = [16, 16]
    for predictor in heads.get("box_predictors", [heads.get("box_predictor")]):
        predictor.update(test_score_thresh=0.0, test_topk_per_image=20)
    return cfg


@pytest.mark.parametrize("file", DETECTED)
def test_it_loads_detectron2s_weights_and_finds_the_same(projects, file):
    """Float32: what is found of 20 proposals, boxes within 1e-3 of a pixel, scores within 1e-5."""
    cfg = narrow(load(projects, file))
    theirs = instantiate(detectron2s(cfg).model).eval()
    ours = instantiate(cfg.model).eval()
    if file.endswith(f"{QUICK[0]}.py"):
        theirs.load_state_dict(ours.state_dict())  # and the other way about
    # Of random pyramids and heads no box would be left, and cascades would blow differences up.
    randomize(theirs.backbone.bottom_up)
    ours.load_state_dict(theirs.state_dict())
    image = torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8)
    with torch.no_grad():
        expected, actual = (
            model([{"image": image, "height": 90, "width": 120}])[0]["instances"]
            for model in (theirs, ours)
        )
    assert len(expected) > 10 and len(actual) == len(expected)
    assert (actual.pred_boxes.tensor - expected.pred_boxes.tensor).abs().max() < 1e-3
    assert (actual.scores - expected.scores).abs().max() < 1e-5
    assert torch.equal(actual.pred_classes, expected.pred_classes)
    assert (actual.pred_masks != expected.pred_masks).float().mean() < 1e-3
