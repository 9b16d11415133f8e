"""The benchmark of the backbone, on small images: what it compares, and what it writes."""

import csv
import os
from argparse import Namespace
from collections import Counter

import pytest
import torch
from models import TINY

from mvitv2_det import MViT
from projects.backbone_benchmark import (
    compiling,
    floors,
    kept,
    kernels,
    loss_curves,
    networks,
    presets,
    profiling,
    report,
    run,
    scaling,
    stages,
    warming,
)
from projects.backbone_benchmark.floors import FAMILIES, Work
from projects.backbone_benchmark.kernels import KernelTimes
from projects.backbone_benchmark.networks import Setting
from projects.backbone_benchmark.presets import Step
from projects.backbone_benchmark.scaling import Point

SMALL = Setting("T", (64, 96), 1, "fp32", "cpu")


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
    assert float(rows["ours"]["of the base's"]) < 1
    assert rows["ours, without windows as timm"]["compared with"] == "timm"
    assert (rows["ours"]["attention by"], rows["Detectron2"]["attention by"]) == ("strips", "")
    assert "×" in (folder / "speed.md").read_text()
    assert (folder / "speed.png").stat().st_size > 1000
    assert "| ours " in capsys.readouterr().out


def test_ours_without_windows_computes_what_timm_does():
    setting = Setting("T", (64, 64), 1, "fp32", "cpu")
    theirs = networks.timm_network(setting)
    ours = networks.our_network(
        setting, networks.detectron2_network(setting), "auto", **networks.AS_TIMM
    )
    shapes = [
        {name: feature.shape for name, feature in networks.inference(model, setting)().items()}
        for model in (theirs, ours)
    ]
    assert shapes[0] == shapes[1]


def test_floors_of_stages():
    """Products counted by hand in one stage; no time below its floor."""
    measured = stages.measure(SMALL, rounds=1, report=lambda line: None)
    assert [stage.name for stage in measured] == [
        stages.PATCHES,
        *(f"scale{s}" for s in range(2, 6)),
    ]
    patches = measured[0]
    assert patches.multiply_adds == 16 * 24 * 96 * 3 * 7 * 7
    tokens, weights = 16 * 24 * 96, 96 * 3 * 49 + 96
    assert patches.bytes == 4 * (3 * 64 * 96 + tokens + weights)
    for stage in measured:
        assert set(stage.seconds) == {"Detectron2", "ours"}
        assert all(seconds > 0.5 * stage.floor for seconds in stage.seconds.values())


def test_kept_by_each_block():
    """Ours as counted by hand: of T tokens with C channels 10·T·C, or 8 and two pooled maps where k
    and v are pooled at stride 4; and R of Eq. 4, which for real images is little beside it.
    """
    blocks = kept.measure(Setting("T", (64, 64), 1, "fp32", "cpu"), report=lambda line: None)
    assert [block.number for block in blocks] == list(range(1, 11))
    first, fifth = blocks[0], blocks[4]
    assert (first.tokens, first.channels) == ((16, 16), 96)
    assert (fifth.tokens, fifth.channels) == ((4, 4), 384)
    folded = (8 + 2 / 16) * 16 * 16 * 96 + 2 * 56 * 14 * 96
    assert first.kept["ours"] == pytest.approx(4 * folded, rel=0.01)
    plain = 10 * 4 * 4 * 384 + 2 * 14 * 14 * 96
    assert fifth.kept["ours"] == pytest.approx(4 * plain, rel=0.02)
    rows = report.kept_table(blocks)
    assert rows[0]["tokens in"] == "16×16" and 0 < float(rows[0]["ratio"]) < 1


def test_work_of_the_blocks():
    """T at 800×1088: strides and windows as the paper's detector has them, per kind of block."""
    found = floors.works(Setting("T", (800, 1088), 8, "bf16", "cuda"))
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
    assert {f: floors.least_bytes(work, f, 2) for f in FAMILIES} == expected
    assert floors.multiply_adds(work, "attention forward") == 2 * (2 * 2 * 54 * 6 * 16)
    assert floors.multiply_adds(work, "pooling forward") == 9 * (q + 2 * k)


@pytest.mark.parametrize("kind", ["windows", "global"])
def test_pieces_compute_the_same(kind):
    """Pooling and attention of plain PyTorch and of SDPA, and what the whole module computes."""
    network = networks.our_network(SMALL, networks.detectron2_network(SMALL), "reference")
    attention = network.blocks[1 if kind == "windows" else 2].attn
    size = (16, 24) if kind == "windows" else (8, 12)
    work = floors.work_of(attention, "scale3", 1, size)
    assert bool(work.window) == (kind == "windows")
    pieces = dict(kernels.pieces_of(attention, work, SMALL))
    assert set(pieces) == {"sdpa", "eager"}
    outputs = [p.attend(*p.pool(p.qkv)) for p in pieces.values()]
    attention.qkv = attention.proj = torch.nn.Identity()
    expected = attention.reference(pieces["eager"].qkv)
    for output in outputs:
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-4)
    for family in ("pooling backward", "attention backward"):
        grads = [p.run(family)() for p in pieces.values()]
        assert len(grads[0]) == len(grads[1])
        assert all(grad.isfinite().all() for found in grads for grad in found)


def test_our_kernels_do_the_same_work():
    pytest.importorskip("triton")
    if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs Triton's interpreter")
    network = networks.our_network(SMALL, networks.detectron2_network(SMALL), "reference")
    work = Work("scale3", 1, (4, 8), 192, 2, 1, 4, 0)
    expected = dict(kernels.pieces_of(network.blocks[2].attn, work, SMALL))["sdpa"]
    ours = kernels.Triton(network.blocks[2].attn, expected.qkv, work)
    with torch.no_grad():
        for pair in zip(ours.run(FAMILIES[0])(), expected.run(FAMILIES[0])(), strict=True):
            torch.testing.assert_close(*pair, rtol=0, atol=1e-4)
        output, _ = ours.run("attention forward")()
        torch.testing.assert_close(output, expected.run("attention forward")(), rtol=0, atol=1e-4)
    assert ours.run("pooling backward")()[0].shape == expected.qkv.shape
    assert ours.run("attention backward")()[0].shape == (1, 4, 8, 192)


def test_kernels_over_their_floors(monkeypatch):
    """Every kind of block by all that compute it; sums count each block."""
    kinds = Counter(dict(list(floors.works(SMALL).items())[-3:]))
    monkeypatch.setattr(kernels, "works", lambda setting: kinds)
    results = kernels.measure(SMALL, 1, report=lambda line: None)
    assert len(results) == 3 * len(FAMILIES)
    assert all(set(result.seconds) == {"sdpa", "eager"} for result in results)
    rows = report.kernel_table(results)
    assert [row["kernels"] for row in rows[-5:]] == [*FAMILIES, "all"]
    total = sum(r.count * r.seconds["sdpa"] for r in results)
    assert float(rows[-1]["sdpa ms"]) == pytest.approx(1e3 * total, abs=1e-3)


def test_sums_over_blocks():
    work = next(iter(floors.works(SMALL)))
    once = KernelTimes(SMALL, work, FAMILIES[0], 1, 10**6, 1e-3, 2e-3, {"sdpa": 4e-3})
    thrice = KernelTimes(SMALL, work, FAMILIES[0], 3, 10**6, 1e-3, 2e-3, {"sdpa": 2e-3})
    rest = [KernelTimes(SMALL, work, f, 1, 0, 1e-3, 0, {"sdpa": 1e-3}) for f in FAMILIES[1:]]
    row = report.kernel_table([once, thrice, *rest])[-5]
    assert (row["least MB"], row["byte floor ms"], row["floor ms"]) == ("4.0", "4.0000", "8.0000")
    found = [row[f"sdpa {column}"] for column in ("ms", "over byte floor", "over floor")]
    assert found == ["10.0000", "2.50", "1.25"]


def test_profile_names_the_longest_operations():
    found = profiling.measure(Setting("T", (32, 32), 1, "fp32", "cpu"), lambda line: None)
    passes = dict.fromkeys((o.network, o.step) for o in found)
    assert len(passes) == 4
    for network, step in passes:
        everything, *longest = [o for o in found if (o.network, o.step) == (network, step)]
        assert (everything.name, everything.share) == ("all", pytest.approx(1))
        assert len(longest) == profiling.TOP
        assert longest[0].seconds >= longest[-1].seconds > 0
        assert sum(o.seconds for o in longest) <= everything.seconds
    assert len(report.profile_table(found)) == len(found)


def test_the_gpu_preset_covers_what_is_asked():
    steps = presets.gpu_steps()
    assert [step.name for step in steps] == [
        "speed", "kernels", "profile", "detector", "speed_fp32"
    ]  # fmt: skip
    assert sum(step.share for step in steps) == pytest.approx(1)
    assert presets.GPU_MINUTES < 10
    speed_settings = {(s.variant, s.size, s.batch, s.precision) for s in steps[0].settings}
    assert len(speed_settings) == 8 and {s[3] for s in speed_settings} == {"bf16"}
    assert {step.part for step in steps} <= set(run.PARTS)


def test_warming_runs_every_kind_of_block():
    setting = Setting("T", (32, 64), 2, "bf16", "cpu")
    for work in floors.works(setting):
        warming.run_block(setting, work)


class Clock:
    """Stands for ``time``."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def gmtime(self) -> None: ...


def test_no_setting_is_begun_too_late(tmp_path, monkeypatch, capsys):
    """Settings of 3, 3, … seconds in 10: three fit, and the table is there after each."""
    clock = Clock()
    monkeypatch.setattr(run, "time", clock)
    args = Namespace(
        batch=[1], precision=["fp32"], device="cpu", output=tmp_path, preset=None, rounds=1,
        minutes=1,
    )  # fmt: skip
    started = run.Run(args, "command")
    settings = [Setting("T", (32, 32 * n), 1, "fp32", "cpu") for n in range(1, 6)]
    step, written = Step("speed", "made", tuple(settings), 1.0), []

    def measure(setting: Setting) -> list[Work]:
        file = started.folder / "made.csv"
        written.append(file.read_text().count("T 32×") if file.exists() else 0)
        clock.now += 3
        return [Namespace(setting=setting)]

    results = started.collect(
        step, 10, measure, "Made", lambda found: [r.setting.columns for r in found]
    )
    assert [r.setting for r in results] == settings[:3] and written == [0, 1, 2]
    assert "no time left for T 32×128, batch 1, fp32" in capsys.readouterr().out
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


def test_compilation_over_sizes(tmp_path, monkeypatch):
    """Of a narrow network and without code generation: as many graphs after the last size as after
    the first, and times of all three networks."""

    def network(setting: Setting, *_) -> MViT:
        return MViT(**TINY, out_features=("scale2",), adaptive_window_size=8)

    for name in ("our_network", "detectron2_network"):
        monkeypatch.setattr(networks, name, network)
    setting, lines = Setting("T", (64, 96), 1, "fp32", "cpu"), []
    sizes = ((64, 96), (96, 64), (70, 101))
    results = compiling.measure(setting, 1, sizes, lines.append, backend="eager")
    assert [result.step for result in results] == ["inference", "training"]
    for result in results:
        assert result.graphs == [1, 1, 1]
        assert set(result.times) == {"Detectron2", "ours", "ours, compiled"}
        assert result.seconds[0] > result.seconds[2] > 0
    assert len(report.compile_table(results)) == len(lines) == 6
    note = report.compile_note(results)
    assert "training at 64×96: Detectron2 " in note and "over Detectron2" in note


def test_exponent_of_a_power_law():
    points = [Point("ours", side, None, round(1000 * side**2.5)) for side in (448, 640, 1024)]
    assert scaling.exponent(points, "ours", "peak") == pytest.approx(1.25, abs=1e-3)


def test_scaling_measures_both_networks():
    points = scaling.measure(SMALL, 1, sides=(32, 64), report=lambda line: None)
    assert [(p.network, p.side) for p in points] == [
        ("Detectron2", 32), ("ours", 32), ("Detectron2", 64), ("ours", 64)
    ]  # fmt: skip
    assert all(point.peak > 0 and point.seconds.spread.median > 0 for point in points)


def test_losses_stay_together():
    """Before rounding is amplified, both backbones train alike, and training changes the loss."""
    losses = loss_curves.measure(4, report=lambda line: None).losses
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
    warming.run_block(setting, next(iter(floors.works(setting))))
    arguments = ["--parts", "speed", "kernels", "profile", "--variants", "T", "--sizes", "64x96"]
    arguments += ["--rounds", "1", "--precision", "bf16", "--batch", "1", "2", "--minutes", "5"]
    assert run.main([*arguments, "--output", str(tmp_path)]) == 0
    assert "triton ms" in (tmp_path / "cuda_bf16_batch1-2" / "kernels.csv").read_text()


def test_a_process_of_its_own():
    """Another process, which is told the arguments and whose errors come back."""
    assert run.in_fresh_process(os.getpid) != os.getpid()
    assert run.in_fresh_process(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        run.in_fresh_process(divmod, 7, 0)
