"""Costs: the paper's protocol on every size, and fvcore itself on small models.

Figures are in 10⁹ multiply-adds and 10⁶ parameters, counted with fvcore from Detectron2's MViTv2
detectors. The paper prints the one with batch norm rounded
up: 279 for 278.25, 3084 for 3083.88.
"""

from functools import cache, partial
from itertools import chain

import pytest
import torch
from detectron2.config import LazyCall, instantiate
from detectron2.modeling.backbone.fpn import FPN
from fvcore.nn import FlopCountAnalysis
from marks import long_but
from models import TINY, narrow
from omegaconf import OmegaConf
from torch import nn

from mvitv2_det import VARIANTS, MViT, UserError, get_config
from mvitv2_det.costs import count_backbone
from mvitv2_det.detection.costs import Costs, count_costs

# Config: without batch norm, with batch norm, parameters.
TABLE_5 = {
    "mask_rcnn_mvitv2_t_3x": (278.25, 278.25, 43.680),
    "mask_rcnn_mvitv2_s_3x": (325.75, 325.75, 54.376),
    "mask_rcnn_mvitv2_b_3x": (391.52, 391.52, 70.979),
    "mask_rcnn_mvitv2_l_3x": (1096.21, 1096.21, 237.560),
    "mask_rcnn_mvitv2_l_in21k_3x": (1052.11, 1052.11, 232.943),
    "cascade_mask_rcnn_mvitv2_t_3x": (699.85, 700.19, 75.848),
    "cascade_mask_rcnn_mvitv2_s_3x": (747.35, 747.69, 86.545),
    "cascade_mask_rcnn_mvitv2_b_3x": (813.11, 813.45, 103.147),
    "cascade_mask_rcnn_mvitv2_l_3x": (1517.81, 1518.15, 269.728),
    "cascade_mask_rcnn_mvitv2_l_in21k_lsj_50ep": (1473.71, 1474.05, 265.111),
    "cascade_mask_rcnn_mvitv2_h_3x": (3083.54, 3083.88, 718.156),
}
# Config: bottom-up, FPN.
PYRAMIDS = {
    "mask_rcnn_mvitv2_t_3x": (107.24, 53.11),
    "mask_rcnn_mvitv2_s_3x": (154.74, 53.11),
    "mask_rcnn_mvitv2_b_3x": (220.50, 53.11),
    "mask_rcnn_mvitv2_l_in21k_3x": (879.62, 54.58),
    "cascade_mask_rcnn_mvitv2_h_3x": (2487.99, 56.05),
}
# Config: RPN head, box heads, mask head.
HEADS = {
    "mask_rcnn_mvitv2_t_3x": (50.62, 14.30, 52.99),
    "cascade_mask_rcnn_mvitv2_h_3x": (100.90, 385.61, 52.99),
}
TOLERANCE = 0.011  # The figures are rounded to 0.01, and so are the two that make their sum.


@cache
def costs_of(name: str) -> Costs:
    return count_costs(get_config(name))


@pytest.mark.parametrize(
    "name", long_but(("mask_rcnn_mvitv2_t_3x", "mask_rcnn_mvitv2_b_3x"), TABLE_5)
)
def test_table_5(name):
    total = costs_of(name).total
    without_batch_norm, with_batch_norm, parameters = TABLE_5[name]
    assert total.giga == pytest.approx(without_batch_norm, abs=TOLERANCE)
    assert total.giga_with_batch_norm == pytest.approx(with_batch_norm, abs=TOLERANCE)
    assert total.million_parameters == pytest.approx(parameters, abs=0.001)


@pytest.mark.parametrize(
    "name", long_but(("mask_rcnn_mvitv2_t_3x", "mask_rcnn_mvitv2_l_in21k_3x"), PYRAMIDS)
)
def test_pyramids(name):
    got = [costs_of(name).part(part).giga for part in ("bottom-up", "FPN")]
    assert got == pytest.approx(PYRAMIDS[name], abs=TOLERANCE)


@pytest.mark.parametrize("name", HEADS)
def test_heads(name):
    got = [costs_of(name).part(part).giga for part in ("RPN head", "box heads", "mask head")]
    assert got == pytest.approx(HEADS[name], abs=TOLERANCE)


@pytest.mark.parametrize("variant", ["T", "S", "B"])
def test_doubled_kv_stride_saves_28_giga(variant):
    """In the two global blocks that end scale3 and scale4."""
    arguments = VARIANTS[variant].backbone_arguments()
    doubled, undoubled = (
        count_backbone(LazyCall(MViT)(**arguments, global_kv_stride_factor=factor), (800, 1280))
        for factor in (2, 1)
    )
    assert undoubled.giga - doubled.giga == pytest.approx(28.0, abs=0.05)
    assert undoubled.parameters == doubled.parameters


# Against fvcore, on real weights. It takes the multiply-adds of an einsum, which are those of the
# relative positions, from a text that NumPy prints with four digits; all else is exact.
ROUNDED = 2e-5
PLAIN_NORM = partial(nn.LayerNorm, elementwise_affine=False)


class Flat(nn.Module):
    """A module with its outputs in one list, which fvcore can trace."""

    def __init__(self, run, *modules: nn.Module) -> None:
        super().__init__()
        self.modules_of_run = nn.ModuleList(modules)
        self.run = run

    def forward(self, *inputs):
        outputs = self.run(*inputs)
        return list(outputs.values()) if isinstance(outputs, dict) else outputs


def fvcore_macs(run, modules, inputs) -> int:
    analysis = FlopCountAnalysis(Flat(run, *modules), inputs)
    return int(analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total())


def small_detector(name: str) -> nn.Module:
    """That config with a narrow backbone and narrow heads, on the CPU."""
    model = get_config(name).model
    model.backbone.out_channels = 8
    model.backbone.bottom_up.update(TINY)
    model.roi_heads.mask_head.conv_dims = [8, 8]
    return instantiate(model).eval()


@pytest.mark.parametrize(
    ("name", "image_size"),
    [("mask_rcnn_mvitv2_t_3x", (70, 101)), ("cascade_mask_rcnn_mvitv2_t_3x", (96, 128))],
)
def test_parts_equal_fvcore(name, image_size):
    model = small_detector(name)
    costs = count_costs(model, image_size, proposals=20, detections=10)
    images = torch.randn(1, 3, *image_size)
    with torch.no_grad():
        features = model.backbone(images)
    heads, rpn_head = model.roi_heads, model.proposal_generator.rpn_head
    stages = [(heads.box_head, heads.box_predictor)]
    if name.startswith("cascade"):
        stages = list(zip(heads.box_head, heads.box_predictor, strict=True))
    boxes, masks = torch.randn(20, 8, 7, 7), torch.randn(10, 8, 14, 14)
    expected = {
        "backbone": fvcore_macs(model.backbone, [model.backbone], images),
        "RPN head": fvcore_macs(
            lambda *maps: [*chain(*rpn_head(maps))], [rpn_head], tuple(features.values())
        ),
        "box heads": sum(
            fvcore_macs(
                lambda x, head=head, predictor=predictor: predictor(head(x)),
                [head, predictor],
                boxes,
            )
            for head, predictor in stages
        ),
        "mask head": fvcore_macs(heads.mask_head.layers, [heads.mask_head], masks),
    }
    got = {part.name: part.macs + part.batch_norm_macs for part in costs.parts}
    got["backbone"] = got.pop("bottom-up") + got.pop("FPN")
    assert got.pop("backbone") == pytest.approx(expected.pop("backbone"), rel=ROUNDED)
    assert got == expected
    assert (costs.total.batch_norm_macs > 0) == name.startswith("cascade")


@pytest.mark.parametrize(
    ("arguments", "tolerance"),
    [
        (narrow("T"), ROUNDED),
        (TINY | {"adaptive_window_size": 0, "global_kv_stride_factor": 1}, ROUNDED),
        (TINY | {"use_rel_pos": False, "residual_pooling": False}, 0),
        (TINY | {"expand_in_attention": False, "use_abs_pos": True}, ROUNDED),
        (TINY | {"use_rel_pos": False, "norm_layer": PLAIN_NORM}, 0),
        pytest.param(VARIANTS["T"].backbone_arguments(), ROUNDED, marks=pytest.mark.long),
    ],
)
def test_backbone_equals_fvcore(arguments, tolerance):
    backbone = MViT(**arguments).eval()
    expected = fvcore_macs(backbone, [backbone], torch.randn(1, 3, 90, 131))
    cost = count_backbone(backbone, (90, 131))
    assert cost.macs == pytest.approx(expected, rel=tolerance, abs=0)
    assert cost.parameters == sum(weight.numel() for weight in backbone.parameters())


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(3),
        nn.BatchNorm2d(3, affine=False),
        nn.GroupNorm(3, 3),
        nn.GroupNorm(3, 3, affine=False),
        nn.Upsample(scale_factor=2),
        nn.AdaptiveAvgPool2d(2),
        nn.ConvTranspose2d(3, 5, 2, stride=2),
        nn.Conv2d(3, 6, 3, groups=3),
    ],
)
def test_layer_equals_fvcore(layer):
    layer.eval()
    cost = count_backbone(layer, (10, 14))
    assert cost.macs + cost.batch_norm_macs == fvcore_macs(
        layer, [layer], torch.randn(1, 3, 10, 14)
    )
    assert cost.macs + cost.batch_norm_macs > 0
    assert (cost.batch_norm_macs > 0) == isinstance(layer, nn.BatchNorm2d)


# What can be counted, and what not.


def test_config_and_model_cost_the_same():
    name = "cascade_mask_rcnn_mvitv2_t_3x"
    model = small_detector(name).train()
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    cfg = get_config(name)
    cfg.model.backbone.out_channels = 8
    cfg.model.backbone.bottom_up.update(TINY)
    cfg.model.roi_heads.mask_head.conv_dims = [8, 8]
    costs = count_costs(cfg, (64, 96))
    assert count_costs(cfg.model, (64, 96)) == costs
    assert count_costs(model, (64, 96)) == costs
    # The model is as it was: on its device, in its mode, with its parts and weights.
    assert model.training
    assert isinstance(model.backbone.bottom_up, MViT)
    for key, weight in model.state_dict().items():
        assert weight.equal(before[key])


def test_proposals_and_detections_scale_their_heads_alone():
    name = "mask_rcnn_mvitv2_t_3x"
    model = small_detector(name)
    once = count_costs(model, (64, 64), proposals=10, detections=5)
    twice = count_costs(model, (64, 64), proposals=20, detections=15)
    factors = {part.name: twice.part(part.name).macs / part.macs for part in once.parts}
    assert factors == {
        "bottom-up": 1, "FPN": 1, "RPN head": 1, "box heads": 2, "mask head": 3,
    }  # fmt: skip
    with pytest.raises(KeyError):
        once.part("neck")


def test_images_are_padded_as_the_detector_pads_them():
    """Detectron2's own FPN, unlike MViTFPN, takes no other images than those."""
    model = get_config("mask_rcnn_mvitv2_t_3x").model
    model.backbone._target_ = FPN
    assert count_costs(model, (70, 101)).parts == count_costs(model, (96, 128)).parts


def test_detector_without_fpn():
    """The stride-32 map alone feeds all heads, as in the paper's Table 9: S costs 276 G."""
    cfg = get_config("mask_rcnn_mvitv2_s_3x")
    model = cfg.model
    model.backbone = model.backbone.bottom_up
    model.backbone.out_features = ["scale5"]
    channels = 8 * model.backbone.embed_dim
    model.proposal_generator.in_features = ["scale5"]
    model.proposal_generator.head.in_channels = channels
    anchors = model.proposal_generator.anchor_generator
    anchors.sizes, anchors.strides = [[32, 64, 128, 256, 512]], [32]
    model.proposal_generator.head.num_anchors = 15
    heads = model.roi_heads
    heads.box_in_features = heads.mask_in_features = ["scale5"]
    heads.box_head.input_shape.channels = heads.mask_head.input_shape.channels = channels
    heads.box_pooler.scales = heads.mask_pooler.scales = [1 / 32]
    costs = count_costs(cfg)
    assert [part.name for part in costs.parts] == ["backbone", "RPN head", "box heads", "mask head"]
    assert costs.total.giga == pytest.approx(276.16, abs=TOLERANCE)


def test_detector_without_masks():
    model = get_config("mask_rcnn_mvitv2_t_3x").model
    model.roi_heads.mask_in_features = None
    names = [part.name for part in count_costs(model).parts]
    assert names == ["bottom-up", "FPN", "RPN head", "box heads"]


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"image_size": (800, 0)}, "image width must be at least 1, got 0"),
        ({"image_size": (800,)}, r"image size must be height and width, got \(800,\)"),
        ({"proposals": 0}, "proposals must be at least 1, got 0"),
        ({"detections": -1}, "detections must be at least 1, got -1"),
    ],
)
def test_wrong_numbers(numbers, words):
    with pytest.raises(UserError, match=words):
        count_costs(get_config("mask_rcnn_mvitv2_t_3x"), **numbers)


def test_config_without_a_model():
    with pytest.raises(UserError, match="no model"):
        count_costs(OmegaConf.create({"train": {}}))


def test_bare_backbone_is_no_detector():
    with pytest.raises(UserError, match=r"of a MViT cannot be counted.* count_backbone\(\)"):
        count_costs(MViT(**TINY))


def test_unknown_heads():
    model = small_detector("mask_rcnn_mvitv2_t_3x")
    model.roi_heads = nn.Identity()
    with pytest.raises(UserError, match="Identity cannot be counted, only with StandardROIHeads"):
        count_costs(model)


def test_keypoint_head():
    model = small_detector("mask_rcnn_mvitv2_t_3x")
    model.roi_heads.keypoint_on = True
    with pytest.raises(UserError, match="keypoint head cannot be counted"):
        count_costs(model)


def test_mask_head_on_whole_maps():
    model = small_detector("mask_rcnn_mvitv2_t_3x")
    model.roi_heads.mask_pooler = None
    with pytest.raises(UserError, match="mask head MaskRCNNConvUpsampleHead cannot be counted"):
        count_costs(model, (64, 64))


def test_weights_outside_of_the_parts():
    model = small_detector("mask_rcnn_mvitv2_t_3x")
    model.relation = nn.Linear(3, 4)
    with pytest.raises(UserError, match="its known parts have"):
        count_costs(model, (64, 64))
