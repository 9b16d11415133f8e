"""Detectors run by other libraries find what PyTorch finds."""

import logging
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import dataset_overrides
from matching import check_same, partners
from small_detector import CASCADE, save_detector

from mvitv2_det import UserError
from mvitv2_det.commands import main
from mvitv2_det.detection import SoftNMSOutputLayers
from mvitv2_det.export import write_detector
from mvitv2_det.predict import Predictor
from mvitv2_det.runtimes import check_runtime, files
from mvitv2_det.runtimes.sessions import open_session, openvino_core
from mvitv2_det.trained import read_trained

RUNTIMES = ("openvino", "onnxruntime")


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return save_detector(tmp_path_factory.mktemp("exported"))


def needs(runtime: str) -> None:
    for package in (runtime, "onnx"):
        pytest.importorskip(package)


def photos() -> list[np.ndarray]:
    """Noise of four sizes and channel means; the last two of one size."""
    rng = np.random.default_rng(0)
    sizes = [(48, 64), (70, 40), (33, 90), (33, 90)]
    return [
        (rng.integers(0, 255, (*size, 3)) * shade).astype(np.uint8)
        for size, shade in zip(sizes, (1, 0.8, 0.6, 0.4), strict=True)
    ]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_finds_what_torch_finds(runtime, detector):
    """Float32: 1e-3 pixels and 1e-4 of score; alone, and beside images of other sizes."""
    needs(runtime)
    expected = Predictor(detector.config, detector.weights)(photos())
    assert min(map(len, expected)) > 3
    predictor = Predictor(detector.config, detector.weights, runtime=runtime)
    check_same(predictor(photos()[0]), expected[0])
    for found, one in zip(predictor(photos()), expected, strict=True):
        check_same(found, one)


def test_a_file_is_made_once_for_settings_and_weights(detector, tmp_path, monkeypatch):
    needs("onnxruntime")
    weights = shutil.copy(detector.weights, tmp_path / "best.pth")
    written = []
    monkeypatch.setattr(
        "mvitv2_det.export.write_detector",
        lambda model, file: written.append(file.write_bytes(b"")),
    )
    monkeypatch.setattr(
        "mvitv2_det.export.quantizing.quantize_file", lambda file: file.write_bytes(b"8")
    )
    monkeypatch.setattr(files, "open_session", lambda *_: None)
    monkeypatch.setattr(files, "_check_equal", lambda *_: None)

    def start(**options) -> int:
        Predictor(detector.config, weights, runtime="onnxruntime", **options)
        return len(written)

    assert [start(), start()] == [1, 1]
    assert [path.suffix for path in tmp_path.iterdir()].count(".onnx") == 1
    assert [start(precision="int8"), start(precision="int8"), start()] == [2, 2, 2]
    contents = {path.name[-10:]: path.read_bytes() for path in tmp_path.glob("*.int8.onnx")}
    assert contents == {".int8.onnx": b"8"}
    assert [start(score_threshold=0.3), start(score_threshold=0.3)] == [3, 3]
    assert start(overrides=["model.roi_heads.box_predictor.test_nms_thresh=0.4"]) == 4
    content = torch.load(weights)
    content["model"]["backbone.fpn_output2.weight"][0, 0, 0, 0] += 1e-3
    torch.save(content, weights)
    assert [start(), start()] == [5, 5]


def test_a_folder_that_cannot_be_written(detector, tmp_path, monkeypatch, caplog):
    needs("onnxruntime")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    monkeypatch.setattr("mvitv2_det.export.write_detector", lambda _, file: file.write_bytes(b"1"))
    monkeypatch.setattr(files, "open_session", lambda file, *_: read.append(file.read_bytes()))
    monkeypatch.setattr(files, "_check_equal", lambda *_: None)
    read: list[bytes] = []
    weights = tmp_path / "best.pth"
    weights.symlink_to(detector.weights)
    with caplog.at_level(logging.WARNING):
        Predictor(detector.config, weights, runtime="onnxruntime")
    assert "No space left on device" in caplog.text
    assert list(tmp_path.iterdir()) == [weights]
    assert read == [b"1"]


@pytest.mark.parametrize("change", ["boxes", "count"])
def test_a_file_of_another_network_is_not_kept(change, detector, tmp_path, monkeypatch):
    """Such as where a library computes wrongly on some CPU."""

    def wrong(images):
        (one,) = model([{"image": torch.from_numpy(images[0])}])
        found = one["instances"]
        boxes = found.pred_boxes.tensor + (1 if change == "boxes" else 0)
        end = len(found) // 2 if change == "count" else None
        return [[part[:end].numpy() for part in (boxes, found.pred_classes, found.scores)]]

    model = read_trained(detector.cfg, detector.weights)
    monkeypatch.setattr("mvitv2_det.export.write_detector", lambda _, file: file.write_bytes(b"1"))
    monkeypatch.setattr(files, "open_session", lambda *_: wrong)
    weights = tmp_path / "best.pth"
    weights.touch()
    with torch.no_grad(), pytest.raises(UserError, match=r"is not this detector: of .* instances"):
        files.run_exported(model, None, weights, runtime="openvino")
    assert list(tmp_path.iterdir()) == [weights]


SIGNAL = """
import os, signal, sys, threading
from pathlib import Path
import openvino, openvino.opset13 as operations
from mvitv2_det.runtimes.sessions import open_session

x = operations.parameter([1, 3], openvino.Type.f32)
file = Path(sys.argv[1]) / "model.xml"
openvino.save_model(openvino.Model([operations.relu(x)], [x]), file)
sessions = [open_session(file, "openvino", "fp32")]
other = threading.Thread(target=sessions.clear)
other.start()
other.join()
signal.signal(signal.SIGUSR1, lambda *_: print("heard", flush=True))
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_a_signal_is_heard_after_another_thread_has_dropped_the_session(tmp_path):
    """OpenVINO takes the stack for signals with it: Ctrl-C would be a segmentation fault."""
    needs("openvino")
    run = subprocess.run(
        [sys.executable, "-c", SIGNAL, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert (run.returncode, run.stdout) == (0, "heard\n"), run.stderr


def test_soft_nms_is_refused(detector, tmp_path):
    model = read_trained(detector.cfg, detector.weights)
    model.roi_heads.box_predictor.__class__ = SoftNMSOutputLayers
    with pytest.raises(UserError, match="Soft-NMS cannot be exported"):
        write_detector(model, tmp_path / "soft.onnx")


def test_bf16_needs_a_cpu_that_multiplies_it(tmp_path):
    """OpenVINO alone would compute in float32 elsewhere."""
    needs("openvino")
    if "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU does")
    with pytest.raises(UserError, match="does not multiply bf16 by itself"):
        open_session(tmp_path / "any.onnx", "openvino", "bf16")


@pytest.mark.long
def test_bf16_finds_most(detector):
    """Half of the instances within two pixels: rounding moves them, and NMS chooses others."""
    needs("openvino")
    if "BF16" not in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU does not multiply bf16")
    expected = Predictor(detector.config, detector.weights)(photos())
    options = {"runtime": "openvino", "precision": "bf16"}
    found = Predictor(detector.config, detector.weights, **options)(photos())
    chosen = [one for pair in zip(found, expected, strict=True) for one in partners(*pair, 2, 0.1)]
    assert sum(one is not None for one in chosen) > len(chosen) / 2


def test_a_spoilt_file_is_named(tmp_path):
    for runtime in RUNTIMES:
        needs(runtime)
        (tmp_path / "spoilt.onnx").write_bytes(b"no network")
        with pytest.raises(UserError, match=r"cannot read .*spoilt\.onnx.*delete the file"):
            open_session(tmp_path / "spoilt.onnx", runtime, "fp32")


@pytest.mark.long
def test_cascade(tmp_path):
    needs("openvino")
    detector = save_detector(tmp_path, CASCADE)
    expected = Predictor(detector.config, detector.weights)(photos())
    found = Predictor(detector.config, detector.weights, runtime="openvino")(photos())
    for one, other in zip(found, expected, strict=True):
        check_same(one, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tensorrt", "fp32", None), "must be one of torch, openvino, onnxruntime, got 'tensorrt'"),
        (
            ("onnxruntime", "bf16", None),
            "of onnxruntime must be fp32 or int8, got 'bf16'",
        ),
        (("openvino", "fp16", None), "must be fp32 or bf16 or int8, got 'fp16'"),
        (("openvino", "fp32", "cuda:1"), "runs on a CPU here, got the device 'cuda:1'"),
    ],
)
def test_what_cannot_run_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        check_runtime(*arguments)


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs openvino, onnx: .* 'mvitv2_det\[openvino\]'"):
        check_runtime("openvino", "fp32", None)
    check_runtime("torch", "fp32", "cuda")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.long
def test_evaluation_gives_the_same_results(runtime, detector, coco_folder, tmp_path, capsys):
    needs(runtime)
    overrides = [
        *dataset_overrides(coco_folder),
        f"train.init_checkpoint={detector.weights}",
        f"train.output_dir={tmp_path / 'out'}",
    ]
    results = []
    for one in ("torch", runtime):
        command = ["train", "--eval-only", "--config-file", detector.config, *overrides]
        assert main([*command, f"train.runtime={one}"]) == 0
        lines = capsys.readouterr().out.splitlines()
        results.append([line for line in lines if line.startswith(" Average")])
    assert len(results[0]) == 24  # boxes and masks
    assert results[0] == results[1]
