"""Weights under the names of others, and back; the command."""

import pytest
import timm
import torch
from marks import long_but
from models import TINY, randomize
from timm.models.mvitv2 import checkpoint_filter_fn
from weight_files import (
    TIMM_NAMES,
    assert_same_weights,
    inflated,
    mvit_file,
    mvit_state,
    our_network,
    published,
    timm_network,
    without_windows,
)

from mvitv2_det import MViT, UserError, convert_weights, load_weights
from mvitv2_det.commands import main
from mvitv2_det.weights.files import read_weights


@pytest.mark.parametrize("case", long_but(("T", "S", "S cls"), TIMM_NAMES))
def test_timm_reads_our_mvit_files(case, tmp_path):
    """By timm's own function for them."""
    network = timm_network(case)
    done = convert_weights(network, tmp_path / "model.pyth", strict=True)
    assert (done.source_format, done.target_format) == ("timm", "mvit")
    content = torch.load(tmp_path / "model.pyth", weights_only=True)
    assert_same_weights(checkpoint_filter_fn(content, network), network.state_dict())


@pytest.mark.parametrize("case", ["T", "L", "H cls"])
@pytest.mark.parametrize(
    "targets",
    [
        ("mvit.pyth",),
        ("zoo.pkl", "model.safetensors", "mvit.pyth"),
        ("d2.pth", "other.pkl", "mvit.pt"),
    ],
)
def test_round_trips_lose_nothing(case, targets, tmp_path):
    """From timm through every kind of file back to timm."""
    network = timm_network(case, depths=(1, 2, 2, 1))
    source = network
    for target in targets:
        to = "mvit" if target.startswith("mvit") else None
        convert_weights(source, tmp_path / target, to=to, strict=True)
        source = tmp_path / target
    for ending in ("safetensors", "pth"):
        back = tmp_path / f"timm.{ending}"
        convert_weights(source, back, to="timm", strict=True)
        assert_same_weights(read_weights(back), network.state_dict())


def test_mvit_to_timm_and_back(tmp_path):
    state = mvit_state(without_windows())
    torch.save(mvit_file(state), tmp_path / "a.pyth")
    convert_weights(tmp_path / "a.pyth", tmp_path / "b.pth", to="timm", strict=True)
    assert "stages.3.blocks.0.shortcut_proj_attn.weight" in read_weights(tmp_path / "b.pth")
    convert_weights(tmp_path / "b.pth", tmp_path / "c.pyth", strict=True)
    assert_same_weights(read_weights(tmp_path / "c.pyth"), state)


def test_timm_loads_a_converted_file(tmp_path):
    """A trained backbone of ours in timm.create_model; the classifier it starts anew."""
    ours = randomize(published("T"))
    done = convert_weights(ours, tmp_path / "timm.safetensors", to="timm")
    assert len(done.dropped) == 8
    assert all(name.startswith("scale") for name in done.dropped)
    network = timm.create_model("mvitv2_tiny")
    missing = network.load_state_dict(read_weights(tmp_path / "timm.safetensors"), strict=False)
    assert missing.unexpected_keys == []
    expected = {f"{module}.{leaf}" for module in ("norm", "head.fc") for leaf in ("weight", "bias")}
    assert set(missing.missing_keys) == expected
    assert torch.equal(network.stages[2].blocks[3].attn.qkv.weight, ours.blocks[6].attn.qkv.weight)


def test_numbers_of_every_type(tmp_path):
    """Half precision, whole numbers and shared memory come through."""
    state = without_windows().half().state_dict()
    state |= {"scale2_norm.steps": torch.tensor(7), "scale2_norm.twin": state["scale2_norm.bias"]}
    for ending in ("pkl", "pth", "safetensors"):
        convert_weights(state, tmp_path / f"a.{ending}", to=None)
        read = read_weights(tmp_path / f"a.{ending}")
        assert_same_weights(read, {f"backbone.bottom_up.{n}": w for n, w in state.items()})
        assert read["backbone.bottom_up.patch_embed.proj.bias"].dtype == torch.float16
    load_weights(MViT(**TINY), tmp_path / "a.pkl")
    with pytest.raises(UserError, match=r"no bfloat16, as tensor .*; write .safetensors or .pth"):
        convert_weights(without_windows().bfloat16(), tmp_path / "b.pkl")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.pkl", "a.pth", "a.safetensors"]


def test_video_becomes_an_image_network(tmp_path):
    state = mvit_state(without_windows())
    done = convert_weights(mvit_file(inflated(state)), tmp_path / "image.pyth")
    assert done.source_format == "pyslowfast"
    written = read_weights(tmp_path / "image.pyth")
    assert all(torch.equal(written[name], weight) for name, weight in state.items())


@pytest.mark.parametrize(
    ("target", "to", "words"),
    [
        ("x.npz", None, r"must end in \.safetensors, \.pkl"),
        ("x.pth", "safetensors", r"a file of safetensors must end in \.safetensors, got 'x.pth'"),
        ("x.pkl", "mvit", "a file of mvit must end in .pth"),
        ("x.pth", "onnx", "no target format 'onnx'; there are timm, mvit"),
        ("none/x.pth", None, "cannot write .*none/x.pth.*No such file"),
    ],
)
def test_wrong_targets(target, to, words, tmp_path):
    with pytest.raises(UserError, match=words):
        convert_weights(without_windows(), tmp_path / target, to=to)


def test_command(tmp_path, capsys):
    source, target = str(tmp_path / "in.pyth"), str(tmp_path / "out.safetensors")
    torch.save(mvit_file(mvit_state(our_network("L"))), source)
    assert main(["convert", source, "--show"]) == 0
    shown = capsys.readouterr().out
    assert "weights of mvit\n" in shown
    assert "2-6-36-4 blocks and 16 channels; channels double in the MLP" in shown
    assert "blocks.7.attn.rel_pos_w" in shown
    assert "head.projection.weight" in shown

    assert main(["convert", source, target, "--to", "timm"]) == 0
    assert "from mvit to timm" in capsys.readouterr().out
    assert main(["convert", target, str(tmp_path / "back.pyth"), "--strict"]) == 0
    assert_same_weights(read_weights(tmp_path / "back.pyth"), read_weights(source))
    capsys.readouterr()

    torch.save({"model": without_windows().state_dict()}, source)
    assert main(["convert", source, target, "--to", "timm"]) == 0
    assert "no name for it: scale5_norm.bias" in capsys.readouterr().out
    assert main(["convert", source, target, "--to", "timm", "--strict"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert main(["convert", "none.pth", target]) == 2
    assert capsys.readouterr().err == "error: there is no checkpoint file 'none.pth'\n"
    assert main(["convert", source]) == 2
    assert capsys.readouterr().err == "error: name a TARGET, or give --show\n"
