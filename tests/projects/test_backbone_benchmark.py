"""The benchmark of the backbone, on small images: what it compares, and what it writes."""

import csv
import os
import shutil
from argparse import Namespace
from collections import Counter
from unittest.mock import Mock

import pytest
import torch
from models import TINY, randomize, relative_error

from mvitv2_det import MViT, UserError
from projects.backbone_benchmark import (
    compiling,
    counters,
    cpu_runtimes,
    kernels,
    loss_curves,
    networks,
    profiling,
    roofline,
    run,
    saved_activations,
    scaling,
    speed,
    stages,
    warming,
    wing,
)
from projects.backbone_benchmark.kernels import KernelTimes
from projects.backbone_benchmark.networks import Setting
from projects.backbone_benchmark.roofline import FAMILIES, Work
from projects.backbone_benchmark.run import Step
from projects.backbone_benchmark.scaling import Point
from projects.backbone_benchmark.side import Process

SMALL = Setting("T", (64, 96), 1, "fp32", "cpu")


@pytest.mark.long
def test_speed_of_equal_networks(tmp_path, capsys):
    arguments = ["--variants", "T", "--sizes", "64x96", "--rounds", "1", "--timm"]
    assert run.main([*arguments, "--device", "cpu", "--output", str(tmp_path)]) == 0
    folder = tmp_path / "cpu_fp32_batch1"
    lines = (folder / "speed.csv").read_text().splitlines()
    head = [line for line in lines if line.startswith("#")]
    assert any("python projects/backbone_benchmark/run.py --variants T" in line for line in head)
    rows = {row["network"]: row for row in csv.DictReader(lines[len(head) :])}
    assert set(rows) == {"Detectron2", "ours", "timm", "ours, without windows as timm"}
    assert float(rows["ours"]["largest difference"]) < 1e-4
    assert float(rows["ours"]["saved activations ratio"]) < 1
    assert rows["ours, without windows as timm"]["compared with"] == "timm"
    assert rows["ours"]["attention by"] in {"tiled, fused norms and MLP"}
    assert rows["Detectron2"]["attention by"] == ""
    assert "×" in (folder / "speed.md").read_text()
    assert (folder / "speed.png").stat().st_size > 1000
    assert "| ours " in capsys.readouterr().out


def test_ours_without_windows_computes_what_timm_does():
    setting = Setting("T", (64, 64), 1, "fp32", "cpu")
    theirs = networks.TimmBackbone(setting)
    ours = networks.our_network(
        setting, networks.detectron2_network(setting), "auto", **networks.AS_TIMM
    )
    shapes = [
        {name: feature.shape for name, feature in networks.inference(model, setting)().items()}
        for model in (theirs, ours)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.long
def test_roofline_of_stages():
    """Products counted by hand in one stage; no time below its roofline."""
    rows = stages.measure(SMALL, rounds=1, report=lambda line: None)
    assert [row["stage"] for row in rows] == [
        stages.PATCHES,
        *(f"scale{s}" for s in range(2, 6)),
    ]
    tokens, weights = 16 * 24 * 96, 96 * 3 * 49 + 96
    expected = (tokens * 3 * 7 * 7, 4 * (3 * 64 * 96 + tokens + weights))
    assert stages.count_stages(SMALL)[stages.PATCHES] == expected
    for row in rows:
        for name in ("Detectron2", "ours"):
            assert float(row[f"{name} s"]) > 0 and float(row[f"{name} over the roofline"]) > 0.5


def test_saved_activations_of_each_block(monkeypatch):
    """Ours as counted by hand: of T tokens with C channels 10·T·C, or 8 and two pooled maps where k
    and v are pooled at stride 4; 3·T·C where products are recomputed; and R of Eq. 4, which for
    real images is little beside it.
    """
    saved = []
    measure = saved_activations.saved_for_backward
    monkeypatch.setattr(
        saved_activations,
        "saved_for_backward",
        lambda *args, **kwargs: saved.append(measure(*args, **kwargs)) or saved[-1],
    )
    setting = Setting("T", (64, 64), 1, "fp32", "cpu")
    rows = saved_activations.measure(setting, 1, report=lambda line: None)
    assert [row["block"] for row in rows] == [*range(1, 11), "all"]
    first, fifth = rows[0], rows[4]
    assert (first["tokens in"], first["channels out"]) == ("16×16", 96)
    assert (fifth["tokens in"], fifth["channels out"]) == ("4×4", 384)
    ours, recomputing = saved[1::3], saved[2::3]
    folded = (8 + 2 / 16) * 16 * 16 * 96 + 2 * 56 * 14 * 96
    assert ours[0] == pytest.approx(4 * folded, rel=0.01)
    plain = 10 * 4 * 4 * 384 + 2 * 14 * 14 * 96
    assert ours[4] == pytest.approx(4 * plain, rel=0.02)
    assert recomputing[0] == pytest.approx(4 * (folded - 5 * 16 * 16 * 96), rel=0.01)
    assert recomputing[4] == pytest.approx(4 * (plain - 7 * 4 * 4 * 384), rel=0.02)
    assert all(0 < float(row["recomputing ratio"]) < float(row["ratio"]) < 1 for row in rows)
    assert float(rows[-1]["ratio"]) == pytest.approx(sum(ours) / sum(saved[::3]), abs=0.01)


def test_work_of_the_blocks():
    """T at 800×1088: strides and windows as the paper's detector has them, per kind of block."""
    found = roofline.works(Setting("T", (800, 1088), 8, "bf16", "cuda"))
    assert found == {
        Work("scale2", 8, (200, 272), 96, 1, 1, 4, 56): 1,
        Work("scale3", 8, (200, 272), 192, 2, 2, 2, 56): 1,
        Work("scale3", 8, (100, 136), 192, 2, 1, 4, 0): 1,
        Work("scale4", 8, (100, 136), 384, 4, 2, 1, 28): 1,
        Work("scale4", 8, (50, 68), 384, 4, 1, 1, 14): 3,
        Work("scale4", 8, (50, 68), 384, 4, 1, 2, 0): 1,
        Work("scale5", 8, (50, 68), 768, 8, 2, 1, 14): 1,
        Work("scale5", 8, (25, 34), 768, 8, 1, 1, 0): 1,
    }


def test_least_bytes_by_hand():
    """Stride 4 reads 3 of 4 rows and columns: of 6 rows 0, 1, 3, 4, 5, of 9 columns 6 and 8."""
    work = Work("scale2", 2, (6, 9), 32, 2, 1, 4, 0)
    assert (work.size_q, work.size_kv) == ((6, 9), (2, 3))
    assert (work.window_q, work.window_kv) == ((6, 9), (2, 3))
    read = [54, 5 * 7, 5 * 7]  # rows 0, 1, 3, 4, 5; columns 0, 1, 3, 4, 5, 7, 8
    q, k = 2 * 54 * 32, 2 * 6 * 32
    r = (6 * 2 + 9 * 3) * 16
    expected = {
        "pooling forward": 2 * (2 * 32 * sum(read) + q + 2 * k),
        "pooling backward": 2 * (2 * 32 * sum(read) + q + 2 * k + 3 * 2 * 54 * 32),
        "attention forward": 2 * (2 * q + 2 * k + r) + 4 * 2 * 54 * 2,
        "attention backward": 2 * (4 * q + 4 * k + 2 * r) + 4 * 2 * 54 * 2,
    }
    assert {f: roofline.least_bytes(work, f, 2) for f in FAMILIES} == expected
    assert roofline.multiply_adds(work, "attention forward") == 2 * (2 * 2 * 54 * 6 * 16)
    assert roofline.multiply_adds(work, "pooling forward") == 9 * (q + 2 * k)


@pytest.mark.parametrize("kind", ["windows", "global"])
def test_pieces_compute_the_same(kind):
    """Pooling and attention of plain PyTorch and of SDPA, and what the whole module computes."""
    network = networks.our_network(SMALL, networks.detectron2_network(SMALL), "reference")
    attention = network.blocks[1 if kind == "windows" else 2].attn
    size = (16, 24) if kind == "windows" else (8, 12)
    work = roofline.work_of(attention.spec, "scale3", 1, size)
    assert bool(work.window) == (kind == "windows")
    pieces = dict(kernels.pieces_of(attention, work, SMALL))
    assert set(pieces) == {"sdpa", "eager"}
    outputs = [p.attend(*p.pool(p.qkv)) for p in pieces.values()]
    attention.qkv = attention.proj = torch.nn.Identity()
    expected = attention(pieces["eager"].qkv)
    for output in outputs:
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-4)
    for family in ("pooling backward", "attention backward"):
        grads = [p.run(family)() for p in pieces.values()]
        assert len(grads[0]) == len(grads[1])
        assert all(grad.isfinite().all() for found in grads for grad in found)


@pytest.mark.long
def test_our_kernels_do_the_same_work():
    pytest.importorskip("triton", minversion="3.4")
    if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs Triton's interpreter")
    network = networks.our_network(SMALL, networks.detectron2_network(SMALL), "reference")
    work = Work("scale3", 1, (4, 8), 192, 2, 1, 4, 0)
    expected = dict(kernels.pieces_of(network.blocks[2].attn, work, SMALL))["sdpa"]
    ours = kernels.Triton(network.blocks[2].attn, expected.qkv)
    with torch.no_grad():
        for pair in zip(ours.run(FAMILIES[0])(), expected.run(FAMILIES[0])(), strict=True):
            torch.testing.assert_close(*pair, rtol=0, atol=1e-4)
        output, _ = ours.run("attention forward")()
        torch.testing.assert_close(output, expected.run("attention forward")(), rtol=0, atol=1e-4)
    assert ours.run("pooling backward")()[0].shape == expected.qkv.shape
    assert ours.run("attention backward")()[0].shape == (1, 4, 8, 192)


@pytest.mark.long
def test_kernels_over_their_roofline(monkeypatch):
    """Every kind of block by all implementations, then all blocks."""
    kinds = Counter(dict(list(roofline.works(SMALL).items())[-3:]))
    monkeypatch.setattr(kernels, "works", lambda setting: kinds)
    rows = kernels.measure(SMALL, 1, report=lambda line: None)
    assert len(rows) == 3 * len(FAMILIES) + len(FAMILIES) + 1
    assert [row["kernels"] for row in rows[-5:]] == [*FAMILIES, "all"]
    for name in ("sdpa", "eager"):
        assert all(float(row[f"{name} ms"]) > 0 for row in rows)


def test_sums_over_blocks():
    work = next(iter(roofline.works(SMALL)))
    once = KernelTimes(work, FAMILIES[0], 1, 10**6, 1e-3, 2e-3, {"sdpa": 4e-3})
    thrice = KernelTimes(work, FAMILIES[0], 3, 10**6, 1e-3, 2e-3, {"sdpa": 2e-3})
    rest = [KernelTimes(work, f, 1, 0, 1e-3, 0, {"sdpa": 1e-3}) for f in FAMILIES[1:]]
    rows = kernels.table(SMALL, [once, thrice, *rest])
    row, everything = rows[-5], rows[-1]
    bounds = [row[name] for name in ("least MB", "bandwidth bound ms", "roofline ms")]
    assert bounds == ["4.0", "4.0000", "8.0000"]
    found = [row[f"sdpa {column}"] for column in ("ms", "over bandwidth bound", "over roofline")]
    assert found == ["10.0000", "2.50", "1.25"]
    assert everything["sdpa ms"] == "13.0000"


@pytest.mark.long
def test_profile_names_the_longest_operations():
    found = profiling.measure(Setting("T", (32, 32), 1, "fp32", "cpu"), 1, lambda line: None)
    passes = dict.fromkeys((row["network"], row["step"]) for row in found)
    assert len(passes) == 4
    for pair in passes:
        rows = [row for row in found if (row["network"], row["step"]) == pair]
        assert (rows[0]["operation"], rows[0]["%"]) == ("all", "100.0")
        everything, *longest = (float(row["ms"]) for row in rows)
        assert len(longest) == profiling.TOP
        assert longest == sorted(longest, reverse=True) and longest[-1] > 0
        assert sum(longest) <= everything


def test_the_gpu_preset_covers_what_is_asked():
    steps = run.gpu_steps()
    assert [step.name for step in steps] == [
        "speed", "speed_other_types", "profile", "detector", "kernels"
    ]  # fmt: skip
    assert [(s.precision, s.batch) for s in steps[1].settings] == [
        ("fp16", 1), ("fp16", 8), ("fp32", 1)
    ]  # fmt: skip
    assert {s.variant for step in steps[1:3] for s in step.settings} == {"T"}
    assert sum(step.share for step in steps) == pytest.approx(1)
    assert run.GPU_MINUTES < 10
    speed_settings = {(s.variant, s.size, s.batch, s.precision) for s in steps[0].settings}
    assert len(speed_settings) == 8 and {s[3] for s in speed_settings} == {"bf16"}
    assert {step.part for step in steps} <= set(run.PARTS)


@pytest.mark.long
def test_warming_runs_every_kind_of_block():
    setting = Setting("T", (32, 64), 2, "bf16", "cpu")
    for work in roofline.works(setting):
        warming.run_block(setting, work)


def test_no_setting_is_begun_too_late(tmp_path):
    """Settings of 3 seconds each in 10: three fit, and the table is there after each."""
    args = Namespace(
        keep_freed_memory=False,
        batch=[1], precision=["fp32"], device="cpu", output=tmp_path, preset=None, rounds=1,
        minutes=1,
    )  # fmt: skip
    started = run.Run(args, "command")
    started.progress = Mock(seconds=0.0)
    settings = [Setting("T", (32, 32 * n), 1, "fp32", "cpu") for n in range(1, 6)]
    step, written = Step("stages", "made", tuple(settings), 1.0), []

    def measure(setting: Setting) -> list[dict]:
        file = started.folder / "made.csv"
        written.append(file.read_text().count("T 32×") if file.exists() else 0)
        started.progress.seconds += 3
        return [setting.columns]

    rows = started.collect(step, 10, measure, "Made")
    assert rows == [setting.columns for setting in settings[:3]] and written == [0, 1, 2]
    started.progress.assert_called_with("made: no time left for T 32×128, batch 1, fp32")
    assert "Time was too short for 2 more settings." in (started.folder / "made.md").read_text()


def test_several_batches_and_precisions(tmp_path):
    arguments = ["--variants", "T", "--sizes", "32x64", "--batch", "1", "2", "--device", "cpu"]
    arguments += ["--precision", "fp32", "bf16", "--output", str(tmp_path)]
    args = run.parse(arguments)
    assert run.Run(args, "command").folder.name == "cpu_fp32-bf16_batch1-2"
    (step,) = run.plan(args)
    assert [(s.columns["batch"], s.columns["precision"]) for s in step.settings] == [
        ("1", "fp32"), ("2", "fp32"), ("1", "bf16"), ("2", "bf16")
    ]  # fmt: skip


@pytest.mark.long
def test_compilation_over_sizes(tmp_path, monkeypatch):
    """Of a narrow network and without code generation: as many graphs after the last size as after
    the first, and times of all three networks."""

    def network(setting: Setting, *_) -> MViT:
        return MViT(**TINY, out_features=("scale2",), adaptive_window_size=8)

    for name in ("our_network", "detectron2_network"):
        monkeypatch.setattr(networks, name, network)
    setting, lines = Setting("T", (64, 96), 1, "fp32", "cpu"), []
    sizes = ((64, 96), (96, 64), (70, 101))
    rows, note = compiling.measure(setting, 1, sizes, lines.append, backend="eager")
    assert [row["step"] for row in rows] == ["inference"] * 3 + ["training"] * 3
    assert {row["graphs compiled so far"] for row in rows} == {"1"}
    assert float(rows[0]["first pass s"]) > float(rows[2]["first pass s"])
    assert len(lines) == 6
    assert "training at 64×96: Detectron2 " in note and "over Detectron2" in note


def test_exponent_of_a_power_law():
    points = [
        Point("ours", f"{side}×{side}", side**2, None, round(1000 * side**2.5))
        for side in (448, 640, 1024)
    ]
    assert scaling.exponent(points, "ours", "peak") == pytest.approx(1.25, abs=1e-3)


def test_scaling_measures_both_networks():
    points = scaling.measure(SMALL, 1, sides=(32, 64), report=lambda line: None)
    assert [(p.network, p.label, p.size) for p in points] == [
        (network, label, size)
        for label, size in (("32×32", 1024), ("64×64", 4096))
        for network in ("Detectron2", "ours")
    ]
    assert all(point.peak > 0 and point.seconds.spread.median > 0 for point in points)


@pytest.mark.long
def test_losses_stay_together():
    """Before rounding is amplified, both backbones train alike, and training changes the loss."""
    losses = loss_curves.measure(4, report=lambda line: None)
    base, _, ours = losses.values()
    assert ours == pytest.approx(base, rel=1e-4)
    assert len(set(base)) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sizes", "800"], "must be like 800x1088, got '800'"),
        (["--sizes", "16x64"], "at least 32x32, got '16x64'"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--precision", "fp16", "--device", "cpu"], "fp16 needs a GPU"),
        (["--batch", "8", "0"], "--batch must be at least 1, got 0"),
        (["--minutes", "0.5"], "--minutes must be at least 1, got 0.5"),
        (["--against", "no-checkout"], "there is none in no-checkout"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(arguments, words, capsys, tmp_path):
    assert run.main([*arguments, "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and "Traceback" not in error


@pytest.mark.gpu
def test_on_a_gpu(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    setting = Setting("T", (64, 96), 1, "bf16", "cuda")
    warming.run_block(setting, next(iter(roofline.works(setting))))
    arguments = ["--parts", "speed", "kernels", "profile", "--variants", "T", "--sizes", "64x96"]
    arguments += ["--rounds", "1", "--precision", "bf16", "--batch", "1", "2", "--minutes", "5"]
    assert run.main([*arguments, "--output", str(tmp_path)]) == 0
    assert "triton ms" in (tmp_path / "cuda_bf16_batch1-2" / "kernels.csv").read_text()


@pytest.mark.long
def test_two_checkouts_take_turns(tmp_path, monkeypatch):
    """Of a copy of the package whose backbone sleeps: it is that copy which is slower."""
    other = tmp_path / "other"
    shutil.copytree(run.HERE / "mvitv2_det", other / "mvitv2_det")
    (other / "projects").mkdir()  # must not be taken for this checkout's
    with (other / "mvitv2_det" / "__init__.py").open("a") as file:
        file.write(
            "import time\n"
            "from .backbone.mvit import MViT as _MViT\n"
            "_forward = _MViT.forward\n"
            "_MViT.forward = lambda self, x: time.sleep(0.3) or _forward(self, x)\n"
            "print('a line that is no answer')\n"
        )
    monkeypatch.setattr(run, "version_of", lambda checkout: checkout.name)
    arguments = ["--variants", "T", "--sizes", "32x32", "--rounds", "1", "--device", "cpu"]
    arguments += ["--threads", "1", "--against", str(other), "--output", str(tmp_path)]
    assert run.main(arguments) == 0
    lines = (tmp_path / "cpu_fp32_batch1" / "speed.csv").read_text().splitlines()
    rows = {r["network"]: r for r in csv.DictReader(x for x in lines if not x.startswith("#"))}
    assert list(rows) == ["Detectron2", "ours", "Detectron2 (other)", "ours (other)"]
    assert float(rows["ours (other)"]["largest difference"]) < 1e-4
    assert rows["ours (other)"]["compared with"] == "Detectron2 (other)"
    gains = {
        name: float(row["inference speed over (other)"].split()[0])
        for name, row in rows.items()
        if row["inference speed over (other)"]
    }
    assert set(gains) == {"Detectron2", "ours"} and gains["ours"] > 3 > gains["Detectron2"]


@pytest.mark.long
def test_a_process_says_what_went_wrong(tmp_path, capfd):
    with Process(run.HERE, SMALL, speed.Options()) as side:
        assert [name for name, _, _ in side.call("names")] == ["Detectron2", "ours"]
        assert side.call("run", "inference", "ours") is None
    (tmp_path / "mvitv2_det").mkdir()
    (tmp_path / "mvitv2_det" / "__init__.py").write_text("raise ImportError('too old')")
    words = f"measures {tmp_path.name} has ended with status 1"
    with Process(tmp_path, SMALL, speed.Options()) as side, pytest.raises(UserError, match=words):
        side.call("names")
    assert "too old" in capfd.readouterr().err


@pytest.mark.parametrize("file", wing.WITHOUT)
def test_the_network_without_a_file_is_the_same(file, monkeypatch):
    """Outputs and a gradient to 1e-9 of the largest value, and the plain way is taken.

    In float64; oneDNN has float32 alone, in which this gradient is good to 1e-2.
    """
    tolerance, dtype = (1e-2, torch.float32) if "oneDNN" in file else (1e-9, torch.float64)
    model = MViT(**TINY | {"adaptive_window_size": 16, "adaptive_kv_stride": 4})
    randomize(model).eval().to(dtype)
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)).to(dtype)

    def run() -> list[torch.Tensor]:
        with torch.no_grad():
            outputs = list(model(images).values())
        model.zero_grad()
        sum(one.square().sum() for one in model(images).values()).backward()
        return [*outputs, model.patch_embed.proj.weight.grad]

    expected = run()
    plain = [
        (module, name, Mock(side_effect=way) if callable(way) else way)
        for module, name, way in wing.WITHOUT[file]
    ]
    monkeypatch.setitem(wing.WITHOUT, file, plain)
    with wing.without(file):
        found = run()
    assert all(way.called for _, _, way in plain if isinstance(way, Mock))
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) <= tolerance


def test_wing_has_a_row_for_each_file(monkeypatch):
    monkeypatch.setattr(wing, "detectron2_network", lambda setting: None)
    monkeypatch.setattr(wing, "our_network", lambda *_: MViT(**TINY))
    monkeypatch.setattr(wing, "WITHOUT", dict(list(wing.WITHOUT.items())[:2]))
    rows = wing.measure(Setting("T", (64, 64), 1, "fp32", "cpu"), 1, lambda line: None)
    assert [row["without"] for row in rows] == ["nothing", "mlp.py"]
    assert rows[0]["training: with it, times as fast"].startswith("1.00")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::addmm", "products"),
        ("mkldnn::_linear_pointwise", "products"),
        ("FullyConnected", "products"),
        ("aten::mkldnn_convolution", "convolutions"),
        ("aten::native_layer_norm", "norms"),
        ("MVN", "norms"),
        ("aten::copy_", "layout"),
        ("Transpose", "layout"),
        ("Subgraph", "element by element"),
        ("aten::add_", "element by element"),
        ("aten::max_pool2d_with_indices", "pooling"),
        ("Unknown", "others"),
    ],
)
def test_kinds_of_operations(name, kind):
    assert counters.kind_of(name) == kind


def test_runtimes_that_are_not_installed_are_left_out(monkeypatch):
    def missing(runtime, precision, device):
        raise UserError(f"{runtime} is missing")

    monkeypatch.setattr(cpu_runtimes, "check_runtime", missing)
    names = (cpu_runtimes.DETECTRON2, cpu_runtimes.OURS)
    monkeypatch.setattr(cpu_runtimes, "_detectors", lambda *_: ({n: list for n in names}, {}))
    lines = []
    rows = cpu_runtimes.measure(Setting("T", (64, 64), 1, "fp32", "cpu"), 1, lines.append)
    assert [row["what"] for row in rows] == ["backbone"] * 2 + ["Mask R-CNN"] * 2
    assert [row["by"] for row in rows[:2]] == ["Detectron2, PyTorch", "ours, PyTorch"]
    assert float(rows[1]["largest difference"]) < 1e-5
    assert "openvino: openvino is missing" in lines


@pytest.mark.long
def test_preset_of_cpu_runtimes(tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    parts = ("cpu_runtimes", "counters")
    steps = [Step(part, part, (SMALL,), 0.5) for part in parts]
    monkeypatch.setattr(run, "cpu_steps", lambda *_: steps)
    arguments = ["--preset", "cpu_runtimes", "--rounds", "1", "--output", str(tmp_path)]
    assert run.main(arguments) == 0
    lines = (tmp_path / "cpu_runtimes" / "cpu_runtimes.csv").read_text().splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert {row["by"] for row in rows} >= {"ours, openvino", "ours, PyTorch"}
    assert all(float(row["largest difference"]) < 1e-4 for row in rows if row["what"] == "backbone")
    assert "ours, OpenVINO ms" in (tmp_path / "cpu_runtimes" / "counters.md").read_text()
