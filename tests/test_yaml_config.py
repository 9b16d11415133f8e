"""YAML configs are data: what the project saves is read, and nothing else is run."""

import itertools
import os
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.utils.registry import _convert_target_to_string
from omegaconf import OmegaConf
from PIL import Image
from scripts import ROOT
from small_detector import save_detector

from mvitv2_det import Predictor, UserError, get_config
from mvitv2_det.allowed_names import find_allowed
from mvitv2_det.commands import main
from mvitv2_det.config import config_files, load_config

FILES = {
    file.stem: file
    for file in (*config_files().values(), *sorted(ROOT.glob("projects/*/configs/*.py")))
}


@pytest.mark.parametrize(
    "name", ["cascade_mask_rcnn_mvitv2_l_in21k_lsj_50ep_softnms_ms", "demo", "digits"]
)
def test_saved_configs_are_read_again_as_detectron2_would(name, tmp_path):
    cfg = load_config(str(FILES[name]))
    cfg.setdefault("description", {})  # which training fills in
    file = str(tmp_path / "config.yaml")
    LazyConfig.save(cfg, file)
    ours, theirs = load_config(file), LazyConfig.load(file)
    # Partial functions are equal to themselves alone, but not their descriptions.
    plain = [repr(OmegaConf.to_container(c, resolve=False)) for c in (ours, theirs)]
    assert plain[0] == plain[1]


def calls(value):
    """All that a config calls, and what prepares its data."""
    if isinstance(value, dict):
        yield from (value[key] for key in ("_target_", "prepare") if key in value)
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, dict | list):
            yield from calls(item)


@pytest.mark.long
def test_every_config_calls_what_is_allowed():
    found = set()
    for file in FILES.values():
        found |= set(calls(OmegaConf.to_container(load_config(str(file)), resolve=False)))
    assert len(found) > 40
    for call in found:
        find_allowed(call if isinstance(call, str) else _convert_target_to_string(call))


def test_a_model_is_built_of_a_saved_config(tmp_path):
    cfg = get_config("mask_rcnn_mvitv2_t_3x")
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    bottom_up = load_config(str(tmp_path / "config.yaml")).model.backbone.bottom_up
    norm = bottom_up.norm_layer(8)
    assert isinstance(norm, torch.nn.LayerNorm) and norm.eps == 1e-6


RUNS_CODE = {
    "apply": "z: !!python/object/apply:os.system ['touch {trace}']",
    "new": "z: !!python/object/new:os.system ['touch {trace}']",
    "module": "z: !!python/module:this",
    "name": "z: !!python/name:os.system ''",
    "object": "z: !!python/object:subprocess.Popen {{args: [touch, '{trace}']}}",
    "partial": "z: !!python/object/apply:functools.partial\n"
    "  args: [&i !!python/name:os.system '']\n"
    "  state: !!python/tuple [*i, !!python/tuple ['touch {trace}'], {{}}, null]",
    "partial of text": "z: !!python/object/apply:functools.partial\n  args: [os.system]\n"
    "  state: !!python/tuple [os.system, !!python/tuple [], {{}}, null]",
    "target": "model: {{_target_: os.system, command: 'touch {trace}'}}",
    "nested": "model: {{_target_: torch.nn.Sequential, a: [!!python/tuple "
    "[{{_target_: os.system, command: 'touch {trace}'}}]]}}",
    "target of a target": "model: {{_target_: {{_target_: os.system, command: 'touch {trace}'}}}}",
    "hub": "model: {{_target_: torch.hub.load, repo_or_dir: {folder}, model: m, source: local}}",
    "through a module": "model: {{_target_: torch.nn.modules.module.torch.hub.load}}",
    "reference": "a: os.system\nmodel: {{_target_: '${{a}}', command: 'touch {trace}'}}",
    "resolver": "model: '${{oc.create:{{_target_: os.system, command: \"touch {trace}\"}}}}'",
    "nested resolver": "a: oc.create\nmodel: '${{${{a}}:{{x: 1}}}}'",
    "prepare": "dataset: {{prepare: os.system}}\nmodel: {{}}",
    "proposals": "dataloader: {{_target_: detectron2.data.get_detection_dataset_dicts, "
    "names: x, proposal_files: [{folder}/evil.pkl]}}",
    "yacs": "model: {{_target_: detectron2.modeling.GeneralizedRCNN, cfg: {{MODEL: 1}}}}",
    "script": "dataset: {{options: {{trust_remote_code: true}}}}",
    "other package": "model: {{_target_: antigravity.fly}}",
    "our command": "model: {{_target_: mvitv2_det.commands.main, arguments: [convert]}}",
    "model of a hub": "model: {{_target_: timm.create_model, model_name: 'hf-hub:x/y'}}",
}


@pytest.mark.parametrize("case", RUNS_CODE)
def test_what_would_run_code_is_refused_in_one_line(case, tmp_path):
    trace, file = tmp_path / "trace", tmp_path / "config.yaml"
    (tmp_path / "hubconf.py").write_text(f"open({str(trace)!r}, 'w')\ndef m(): pass\n")
    file.write_text(RUNS_CODE[case].format(trace=trace, folder=tmp_path))
    with pytest.raises(UserError, match=r"config file .*config.yaml.*: ") as caught:
        load_config(str(file))
    assert "\n" not in str(caught.value)
    assert not trace.exists()


LETTERS = list(itertools.pairwise("abcdefgh"))
BROKEN = {
    "alias bomb": "a: &a [x,x]\n"
    + "".join(f"{b}: &{b} [{','.join(9 * [f'*{a}'])}]\n" for a, b in LETTERS),
    "merge bomb": "a: &a {x: 1}\n"
    + "".join(f"{b}: &{b} {{<<: [{','.join(9 * [f'*{a}'])}]}}\n" for a, b in LETTERS),
    "cycle": "a: &a [*a]",
    "deep": "a: " + 500 * "[" + 500 * "]",
    "very deep": "a: " + 50_000 * "[",
    "long": "a: " + 5_000_000 * "x",
    "date": "a: 2001-13-45",
    "digits": "a: " + 10_000 * "1",
    "keys": "{[1]: 2}",
    "list": "[1, 2]",
    "nothing": "",
    "bytes": "a: \x00",
    "tag": "a: !foo 1",
    "two documents": "a: 1\n---\nb: 2",
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_end_in_one_line(case, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(BROKEN[case])
    with pytest.raises(UserError, match=r"config file .*config.yaml") as caught:
        load_config(str(file))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "name",
    [
        "torch.nn.LayerNorm",
        "torch.optim.sgd.SGD",
        "torch.optim.lr_scheduler.CosineAnnealingLR",
        "torch.utils.data.RandomSampler",
        "torchvision.transforms.ToTensor",
        "torchvision.transforms.v2.RandomHorizontalFlip",
        "timm.data.transforms.RandomResizedCropAndInterpolation",
        "timm.scheduler.CosineLRScheduler",
        "timm.optim.Lamb",
        "fvcore.common.param_scheduler.LinearParamScheduler",
        "detectron2.data.samplers.RepeatFactorTrainingSampler",
        "detectron2.modeling.ResNet.make_default_stages",
    ],
)
def test_allowed_by_kind(name):
    assert callable(find_allowed(name))


def test_trust_adds_one_name(tmp_path, capfd):
    file = tmp_path / "config.yaml"
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    file.write_text("model: {_target_: os.getcwd}\ntrain: {}\ndataloader: {}")
    assert instantiate(load_config(str(file), ["os.getcwd"]).model) == os.getcwd()
    for command in (
        ["predict", str(tmp_path / "x.png"), "--output", str(tmp_path), "--weights", "w",
         "--config", str(file)],
        ["train", "--config-file", str(file)],
        ["export", "--part", "backbone", "--config", str(file), "--weights", "w",
         "--format", "onnx", "--output", str(tmp_path / "o")],
        ["count", str(file)],
    ):  # fmt: skip
        assert main(command) == 2
        assert "add --trust os.getcwd" in capfd.readouterr().err
        if command[0] == "predict":
            assert main([*command, "--trust", "os.getcwd"]) == 2
            assert "--trust" not in capfd.readouterr().err


def test_predictor_takes_trusted_names(tmp_path):
    detector = save_detector(tmp_path)
    file = Path(detector.config)
    file.write_text(file.read_text() + "extra: {_target_: os.getcwd}\n")
    with pytest.raises(UserError, match=r"it wants to call os.getcwd"):
        Predictor(detector.config, detector.weights, device="cpu")
    Predictor(detector.config, detector.weights, device="cpu", trust=["os.getcwd"])
