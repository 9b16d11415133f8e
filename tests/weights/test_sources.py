"""Where weights come from: path manager, timm's hub, URLs, train_net.py. No network is used."""

import functools
import http.server
import re
import threading

import pytest
import timm
import torch
from conftest import dataset_overrides, tiny_overrides
from detectron2.utils.file_io import Detectron2Handler
from models import TINY
from weight_files import mvit_file, mvit_state, timm_network, without_windows

import train_net
from mvitv2_det import MViT, UserError, get_config, load_weights
from mvitv2_det.config import config_files
from mvitv2_det.weights import released

NAME = "mask_rcnn_mvitv2_t_3x"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """iopath's cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("FVCORE_CACHE", str(folder))
    return folder


@pytest.fixture
def hub(monkeypatch):
    """timm's pre-trained networks, all the same narrow one; its list has the names asked for."""
    network, asked = timm_network("T", depths=(1, 1, 1, 1)), []

    def create_model(name, pretrained):
        assert pretrained
        asked.append(name)
        return network

    monkeypatch.setattr(timm, "create_model", create_model)
    return network, asked


@pytest.fixture
def server(tmp_path):
    """A web server on this machine that has model.pyth; its address."""
    folder = tmp_path / "web"
    folder.mkdir()
    torch.save(mvit_file(mvit_state(without_windows())), folder / "model.pyth")
    whole = (folder / "model.pyth").read_bytes()
    (folder / "half.pyth").write_bytes(whole[: len(whole) // 2])
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    handler.func.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()


def test_timm(hub, cache):
    (network, asked), ours = hub, MViT(**TINY)
    report = load_weights(ours, "timm://mvitv2_tiny", strict=True)
    assert (report.source, report.format) == ("timm://mvitv2_tiny", "timm")
    projection = network.stages[2].blocks[0].shortcut_proj_attn
    assert torch.equal(ours.blocks[2].proj.weight, projection.weight)
    load_weights(ours, "timm://mvitv2_tiny")
    assert asked == ["mvitv2_tiny"]
    assert (cache / "timm" / "mvitv2_tiny.safetensors").exists()
    load_weights(ours, "timm://mvitv2_tiny.fb_in1k")
    assert asked == ["mvitv2_tiny", "mvitv2_tiny.fb_in1k"]


@pytest.mark.parametrize("name", ["mvitv2_giant", "resnet50", "../x", ""])
def test_timm_without_that_network(name, hub):
    with pytest.raises(UserError, match=f"'timm://{name}': timm has no such .*mvitv2_huge_cls"):
        load_weights(MViT(**TINY), f"timm://{name}")
    assert not hub[1]


def test_timm_without_a_network(monkeypatch):
    def create_model(name, pretrained):
        raise OSError("no route\nto host")

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(UserError, match="'timm://mvitv2_tiny': timm cannot get it: no route to h"):
        load_weights(MViT(**TINY), "timm://mvitv2_tiny")


def test_url(server):
    ours = MViT(**TINY)
    report = load_weights(ours, f"{server}/model.pyth", strict=True)
    assert report.format == "mvit"
    with pytest.raises(UserError, match=r"none\.pyth' cannot be fetched: .*404"):
        load_weights(ours, f"{server}/none.pyth")
    with pytest.raises(UserError, match=r"half\.pyth' cannot be read; it is cut off"):
        load_weights(ours, f"{server}/half.pyth")


def test_detectron2_address(server, monkeypatch):
    monkeypatch.setattr(released, "_DETECTRON2", ("detectron2://", f"{server}/"))
    monkeypatch.setattr(Detectron2Handler, "S3_DETECTRON2_PREFIX", f"{server}/")
    assert load_weights(MViT(**TINY), "detectron2://model.pyth", strict=True).loaded


def test_unknown_addresses():
    with pytest.raises(UserError, match=r"'s5://x' is no address .* timm://NAME"):
        load_weights(MViT(**TINY), "s5://x")


@pytest.fixture
def train(coco_folder, fresh_loggers):
    """Calls train_net.py on small data and a small model."""
    overrides = [
        *tiny_overrides(get_config(NAME)),
        *dataset_overrides(coco_folder),
        f"train.output_dir={coco_folder}/out",
        "train.eval_period=0",
    ]

    def call(*arguments):
        options = [argument for argument in arguments if argument.startswith("--")]
        more = [argument for argument in arguments if not argument.startswith("--")]
        config = str(config_files()[NAME])
        return train_net.main(["--config-file", config, *options, *overrides, *more])

    return call


def saved(folder) -> dict[str, torch.Tensor]:
    return torch.load(folder / "out" / "model_final.pth", weights_only=False)["model"]


FROZEN = "optimizer.lr=0"


@pytest.mark.parametrize("source", ["timm://mvitv2_tiny", "{server}/model.pyth", "{path}"])
def test_train_net_starts_from_any_source(source, train, hub, server, coco_folder, tmp_path):
    source = source.format(server=server, path=tmp_path / "web" / "model.pyth")
    assert train(f"train.init_checkpoint={source}", FROZEN, "--strict") == 0
    state = saved(coco_folder)
    expected = MViT(**TINY)
    load_weights(expected, source)
    for name, weight in expected.state_dict().items():
        if not name.startswith("scale"):
            assert torch.equal(state[f"backbone.bottom_up.{name}"], weight), name
    log = (coco_folder / "out" / "log.txt").read_text()
    assert re.search(r"Weights of \S+ \((timm|mvit)\):", log)
    assert "backbone.bottom_up.scale*_norm" in log


def test_train_net_goes_on_and_evaluates(train, coco_folder, tmp_path):
    path = tmp_path / "start.pyth"
    torch.save(mvit_file(mvit_state(without_windows())), path)
    assert train(f"train.init_checkpoint={path}") == 0
    first = saved(coco_folder)
    # A run that goes on takes its own checkpoint, with the optimizer's state, not the first one.
    path.write_bytes(b"")
    assert train(f"train.init_checkpoint={path}", "--resume", "train.max_iter=3", FROZEN) == 0
    final = coco_folder / "out" / "model_final.pth"
    assert torch.load(final, weights_only=True)["iteration"] == 2
    assert set(saved(coco_folder)) == set(first)
    assert train("--eval-only", "--strict", f"train.init_checkpoint={final}") == 0


@pytest.mark.parametrize("mode", [(), ("--eval-only",), ("--resume",)])
def test_train_net_refuses_in_one_line(mode, train, tmp_path, capfd):
    path = tmp_path / "bad.pth"
    path.write_bytes(b"<html>")
    assert train(*mode, f"train.init_checkpoint={path}") == 2
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    assert re.search(r"^error: checkpoint '.*bad\.pth': no checkpoint", err, re.MULTILINE)


def test_train_net_strict(train, tmp_path, capfd):
    state = mvit_state(without_windows()) | {"surprise": torch.rand(2)}
    torch.save(state, tmp_path / "more.pth")
    checkpoint = f"train.init_checkpoint={tmp_path}/more.pth"
    assert train(checkpoint, "--strict") == 2
    words = "1 of the tensors do not fit, and strict loading allows none: surprise"
    assert words in capfd.readouterr().err
    assert train(checkpoint, "train.strict=true") == 2
    assert train(checkpoint) == 0
