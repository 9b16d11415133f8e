"""Classifiers of clips against torchvision's MViTv2-S and MViTv1-B."""

from unittest.mock import patch

import pytest
import torch
from marks import long_but
from recognition.networks import MVITV1, assert_equal, assert_near, copy_weights
from torchvision.models.video import mvit, mvit_v1_b, mvit_v2_s

from mvitv2_det import Recognizer
from mvitv2_det.weights.key_maps import TORCHVISION

# MViTv1-B has as many blocks and channels as MViTv2-S (Fan et al. 2021, Table 2).
NETWORKS = {"MViTv2-S": (mvit_v2_s, {}), "MViTv1-B": (mvit_v1_b, MVITV1)}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.long
def test_logits_at_full_size(name):
    """16 frames of 224², 400 classes, float32, to 1e-4."""
    build, options = NETWORKS[name]
    theirs, ours = build(weights=None), Recognizer.video("S", **options)
    copy_weights(ours, theirs, TORCHVISION)
    clips = torch.randn(1, 3, 16, 224, 224)
    with torch.no_grad():
        actual, expected = ours(clips), theirs(clips)
    assert_near(actual, expected, expected.abs().max(), 1e-4, "logits")


@pytest.mark.parametrize("name", long_but(("MViTv1-B",), NETWORKS))
def test_logits_and_gradients(name):
    """4 frames of 64², at full width and depth, float64, to 1e-9."""
    build, options = NETWORKS[name]
    with patch.object(mvit, "_mvit") as make:
        build(weights=None)
    arguments = make.call_args.kwargs | {"spatial_size": (64, 64), "temporal_size": 4}
    arguments = {
        key: value for key, value in arguments.items() if key not in ("weights", "progress")
    }
    blocks = make.call_args.args or (arguments.pop("block_setting"),)
    defaults = {
        "residual_pool": False,
        "residual_with_cls_embed": True,
        "rel_pos_embed": False,
        "proj_after_attn": False,
    }
    theirs = mvit.MViT(block_setting=blocks[0], **defaults | arguments).double()
    ours = Recognizer.video("S", 4, image_size=64, **options).double()
    copy_weights(ours, theirs, TORCHVISION)
    clips = torch.randn(2, 3, 4, 64, 64, dtype=torch.float64)
    assert_equal(ours, theirs, TORCHVISION, clips, 1e-9)
