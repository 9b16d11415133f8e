"""The action head against RoIAlign of Detectron2 on each frame of torchvision's MViTv2."""

from unittest.mock import patch

import pytest
import torch
from detectron2.layers import ROIAlign
from models import randomize
from recognition.networks import MVITV1, NARROW, renamed
from torch import nn
from torchvision.models.video import mvit, mvit_v1_b, mvit_v2_s

from mvitv2_det import Recognizer, load_weights
from mvitv2_det.recognition.actions import ActionRecognizer
from mvitv2_det.recognition.description import ClipInput, Description
from mvitv2_det.variants import Variant
from mvitv2_det.weights.key_maps import TORCHVISION


def theirs_of(build, frames, height, width):
    """torchvision's network of a clip of another size, float64."""
    with patch.object(mvit, "_mvit") as make:
        build(weights=None)
    given = make.call_args.kwargs
    blocks = make.call_args.args or (given["block_setting"],)
    keep = ("residual_pool", "residual_with_cls_embed", "rel_pos_embed", "proj_after_attn")
    blocks = [*blocks[0][:4], *blocks[0][13:]]
    options = {"residual_pool": False, "residual_with_cls_embed": True, "rel_pos_embed": False}
    options |= {"proj_after_attn": False} | {key: given[key] for key in keep if key in given}
    return mvit.MViT(
        spatial_size=(height, width), temporal_size=frames, block_setting=blocks, **options
    ).double()


def frame_wise(theirs, head, clips, boxes):
    """The paper's words: RoIAlign on the map of each frame; then mean, maximum, linear."""
    kept = []
    theirs.norm.register_forward_hook(lambda module, inputs, output: kept.append(output))
    theirs(clips)
    frames, height, width = clips.shape[2] // 2, clips.shape[3] // 32, clips.shape[4] // 32
    maps = kept[0][:, 1:].unflatten(1, (frames, height, width)).movedim(-1, 1)
    rois = torch.cat(
        [torch.cat((torch.full((len(b), 1), i).to(b), b), 1) for i, b in enumerate(boxes)]
    )
    align = ROIAlign((7, 7), 1 / 32, 0, aligned=True)
    regions = torch.stack([align(maps[:, :, t], rois) for t in range(frames)]).mean(0)
    return head(regions.flatten(2).max(-1).values)


@pytest.mark.parametrize(
    ("build", "width", "options"),
    # torchvision does not resize the absolute positions of MViTv1.
    [(mvit_v2_s, 96, {}), pytest.param(mvit_v1_b, 64, MVITV1, marks=pytest.mark.long)],
    ids=["MViTv2-S", "MViTv1-B"],
)
def test_equals_frame_wise_roi_align(build, width, options):
    """4 frames of 64 × 96, at full width, seven of the blocks, float64, to 1e-9; a gradient too.

    The size is not square, as in the "full" test. torchvision's relative tables are for a square.
    """
    theirs = randomize(theirs_of(build, 4, 64, width)).eval()
    ours = ActionRecognizer.multiscale(
        Variant(96, (1, 2, 2, 2), 1, 0.0), 80, (4, width, width),
        patch_kernel=(3, 7, 7), patch_stride=(2, 4, 4), patch_padding=(1, 3, 3),
        pool_kernel=(3, 3, 3), adaptive_kv_stride=8, residual_class_token=False,
        class_token=True, **options,
    ).double()  # fmt: skip
    weights = renamed(theirs.state_dict(), TORCHVISION)
    weights = {name: value for name, value in weights.items() if "head" not in name}
    lacking, unexpected = ours.load_state_dict(weights, strict=False)
    assert not unexpected and set(lacking) == {"head.projection.weight", "head.projection.bias"}
    ours.eval()
    clips = torch.randn(2, 3, 4, 64, width, dtype=torch.float64)
    boxes = [
        torch.tensor([[3.5, 2.0, 60.0, 63.0], [0.0, 0.0, 95.0, 63.0], [40.0, 9.0, 40.0, 9.0]]),
        torch.tensor([[50.0, 30.0, 90.0, 40.0]]),
    ]
    boxes = [box.double() for box in boxes]
    actual = ours(clips, boxes)
    expected = frame_wise(theirs, ours.head, clips, boxes)
    assert actual.shape == (4, 80)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    seed = torch.randn_like(expected)
    actual.backward(seed)
    expected.backward(seed)
    torch.testing.assert_close(
        ours.patch_embed.proj.weight.grad, theirs.conv_proj.weight.grad, rtol=1e-8, atol=1e-8
    )


def small(num_classes=5, **options):
    return ActionRecognizer.video(NARROW, 4, num_classes, image_size=64, **options)


def test_takes_the_weights_of_a_classifier():
    """All but the linear layer, whose classes are others, and the report says so."""
    classifier = randomize(Recognizer.video(NARROW, 4, 7, image_size=64))
    model = small()
    report = load_weights(model, classifier)
    assert [misfit.name for misfit in report.misfits] == ["head.projection.weight"] or {
        misfit.name.split(".")[-1] for misfit in report.misfits
    } == {"weight", "bias"}
    for name, value in classifier.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize("class_token", [True, False])
def test_every_parameter_has_a_gradient(class_token):
    model = randomize(small(class_token=class_token))
    loss = model(torch.randn(1, 3, 4, 64, 64), [torch.tensor([[4.0, 4, 50, 60]])]).sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_boxes_of_one_clip_alone_say_nothing_of_another():
    model = randomize(small()).eval()
    clips = torch.randn(3, 3, 4, 64, 64)
    box = torch.tensor([[4.0, 4, 50, 60]])
    none = torch.zeros(0, 4)
    with torch.no_grad():
        together = model(clips, [box, none, box])
        alone = [model(clips[[i]], [box]) for i in (0, 2)]
        assert model(clips[:1], [none]).shape == (0, 5)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_wrong_boxes_and_networks_are_refused():
    model = small()
    with pytest.raises(ValueError, match=r"boxes \(N, 4\) of each of 1 clips"):
        model(torch.randn(1, 3, 4, 64, 64), [])
    with pytest.raises(ValueError, match="actions are of clips"):
        ActionRecognizer.image("T")


def test_description_builds_it():
    arguments = {
        "variant": {"embed_dim": 8, "blocks": [1, 1, 1, 1], "num_heads": 1, "drop_path_rate": 0.0},
        "frames": 4,
        "image_size": 64,
    }
    description = Description("actions", arguments, ("stand", "walk"), ClipInput(size=64, frames=4))
    model = Description.from_dict(description.to_dict()).build()
    assert type(model) is ActionRecognizer and model.num_classes == 2 and model.stride == 32
    assert isinstance(model.head.projection, nn.Linear)
