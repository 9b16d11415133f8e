"""The search for the kernels' blocks, with a stand-in for the GPU; and what candidates become."""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", minversion="3.4", reason="the kernels need Triton 3.4")

from mvitv2_det.fused.triton import tile_table
from mvitv2_det.fused.triton.launch import Blocks
from mvitv2_det.fused.triton.tile_table import Case, Key
from projects.backbone_benchmark import tune_tiles
from projects.backbone_benchmark.roofline import Work
from projects.backbone_benchmark.tiles.choosing import (
    KERNELS,
    Task,
    Trial,
    Verdict,
    largest_error,
    tune,
)

CASE = Case(torch.bfloat16, 96, 32)
GPU = ("NVIDIA H100 80GB HBM3", "9.0")
LARGE = Work("scale2", 8, (200, 272), 96, 1, 1, 4, 56)
SMALL = Work("scale2", 1, (200, 272), 96, 1, 1, 4, 56)
RULE = KERNELS["attention_forward"].rule_of(CASE)
FAST, SLOW, WRONG, BROKEN = (Blocks(32, 32 * i, 4, 1) for i in (1, 2, 3, 4))
KERNEL = replace(KERNELS["attention_forward"], candidates=(FAST, SLOW, WRONG, BROKEN))
TASK = Task(KERNEL, CASE, {SMALL: 1, LARGE: 3})


class StandIn:
    """A bench on which blocks take given seconds: by shape, or on any.

    One of them computes other numbers, and one does not run.
    """

    def __init__(self, seconds: dict, wrong: float = 1.1) -> None:
        self.times, self.wrong, self.ran = {RULE: 1.0, SLOW: 1.0, **seconds}, wrong, []

    def run(self, kernel, work, blocks):
        self.ran.append((work, blocks))
        if blocks == BROKEN:
            raise RuntimeError("out of resource:\nshared memory")
        outputs = [torch.ones(3), torch.full((2,), self.wrong if blocks == WRONG else 1.001)]
        times = self.times.get(blocks, 0.1)
        spills = 8 if blocks == SLOW else 0
        seconds = times[work] if isinstance(times, dict) else times
        return Trial(outputs, spills, lambda: seconds)

    def seconds(self, trials):
        return [trial.again() for trial in trials]


def test_the_fastest_that_computes_the_same_is_kept():
    bench = StandIn({FAST: 0.9})
    verdict = tune(bench, TASK, {})
    assert verdict.complete and verdict.row == FAST
    assert verdict.seconds == pytest.approx({RULE: 4.0, FAST: 3.6, SLOW: 4.0})
    assert verdict.gain == pytest.approx(0.1)
    assert "other outputs" in verdict.failed[WRONG]
    assert verdict.failed[BROKEN] == "out of resource: shared memory"
    assert verdict.spilled == {SLOW}
    assert bench.ran[0] == (LARGE, RULE)
    assert Counter(blocks for _, blocks in bench.ran)[WRONG] == 1  # not tried again


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 0.0])
def test_outputs_that_are_no_numbers_are_other_outputs(wrong):
    assert WRONG in tune(StandIn({}, wrong), TASK, {}).failed


def test_candidates_that_did_not_compile_are_not_run():
    bench = StandIn({FAST: 0.5})
    verdict = tune(bench, TASK, {FAST: "ptxas"})
    assert verdict.row is None and verdict.failed[FAST] == "ptxas"
    assert FAST not in {blocks for _, blocks in bench.ran}


def test_what_loses_on_a_shape_is_not_kept():
    verdict = tune(StandIn({FAST: {LARGE: 0.5, SMALL: 1.1}}), TASK, {})
    assert verdict.row is None and verdict.slower == {FAST}


def test_a_small_gain_is_none():
    verdict = tune(StandIn({FAST: 0.98}), TASK, {})
    assert verdict.row is None and verdict.fastest == FAST


def test_nothing_is_chosen_when_time_ends_before_all_shapes():
    bench = StandIn({FAST: 0.5})
    verdict = tune(bench, TASK, {}, lambda: len(bench.ran) < 6)
    assert not verdict.complete and verdict.row is None


def test_an_error_of_the_rule_is_no_candidate_s():
    with pytest.raises(RuntimeError, match="shared memory"):
        tune(StandIn({}), replace(TASK, kernel=replace(KERNEL, choose=lambda case: BROKEN)), {})


def test_errors_are_relative():
    big = torch.full((4,), 1e4)
    assert largest_error([big], [1.01 * big]) == pytest.approx(0.0099, rel=1e-2)
    assert largest_error([big, torch.zeros(2)], [big, torch.zeros(2)]) == 0


class NoCompiler:
    """Has compiled everything already."""

    def __init__(self, settings, capability, processes) -> None:
        assert capability == (9, 0)

    def begin(self, tasks) -> None: ...

    def failures(self, task, seconds) -> dict:
        return {}

    def close(self) -> None: ...


@pytest.fixture
def on_an_h100(monkeypatch):
    """Runs the script on a stand-in for an H100."""
    monkeypatch.setattr(tune_tiles, "check_measurable", lambda *_, **__: None)
    monkeypatch.setattr(tune_tiles, "describe_machine", lambda device: {"GPU": GPU[0]})
    monkeypatch.setattr(tune_tiles.tile_table, "names_of", lambda device: GPU)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(tune_tiles, "Compiler", NoCompiler)
    monkeypatch.setattr(tune_tiles, "GpuBench", lambda settings: StandIn({FAST: 0.9}))
    monkeypatch.setattr(tune_tiles, "tasks_of", lambda settings, kernels: [TASK])


def test_table_and_report_are_written(on_an_h100, tmp_path, capsys):
    files = table, report = tmp_path / "new" / "tiles.csv", tmp_path / "tiles.md"
    arguments = ["--table", str(table), "--report", str(report)]
    assert tune_tiles.main(arguments) == 0
    assert tile_table.read(table) == {Key(*GPU, "attention_forward", CASE): FAST}
    text = report.read_text()
    assert "| 4000.000 " in text and "| 3600.000 " in text and "| 10.0%" in text
    assert "tune_tiles.py --table tiles.csv" in text and GPU[0] in text
    assert sorted(file for file in tmp_path.rglob("*.*")) == sorted(files)


def test_rows_of_others_stay_and_what_no_longer_gains_goes(on_an_h100, tmp_path, monkeypatch):
    own = Key(*GPU, "attention_forward", CASE)
    others = {
        own._replace(gpu="NVIDIA H200"): FAST,
        own._replace(kernel="attention_over_keys"): FAST,
    }
    table = tmp_path / "tiles.csv"
    tile_table.write(table, {own: SLOW, **others})
    monkeypatch.setattr(tune_tiles, "GpuBench", lambda settings: StandIn({FAST: 1.0}))
    assert tune_tiles.main(["--table", str(table), "--report", str(tmp_path / "tiles.md")]) == 0
    assert tile_table.read(table) == others


def test_rows_stay_without_time(on_an_h100, tmp_path, capsys):
    table = tmp_path / "tiles.csv"
    rows = {Key(*GPU, "attention_forward", CASE): SLOW}
    tile_table.write(table, rows)
    arguments = ["--table", str(table), "--report", str(tmp_path / "t.md"), "--minutes", "1e-9"]
    assert tune_tiles.main(arguments) == 0
    assert tile_table.read(table) == rows
    assert "no time left" in capsys.readouterr().out


def test_rows_stay_where_not_all_shapes_were_tried(on_an_h100, tmp_path, monkeypatch):
    table, report = tmp_path / "tiles.csv", tmp_path / "tiles.md"
    rows = {Key(*GPU, "attention_forward", CASE): SLOW}
    tile_table.write(table, rows)
    monkeypatch.setattr(tune_tiles, "tune", lambda *_: Verdict(TASK, RULE, seconds={RULE: 1.0}))
    assert tune_tiles.main(["--table", str(table), "--report", str(report)]) == 0
    assert tile_table.read(table) == rows
    assert "no time" in report.read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU tunes")
def test_a_machine_without_a_gpu_is_refused_in_a_line(capsys):
    assert tune_tiles.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def printed_by(script: str) -> list[str]:
    """Lines that a script prints in which Triton compiles, as it does not in its interpreter."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORTS + script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


IMPORTS = """
from dataclasses import replace
from projects.backbone_benchmark.networks import Setting
from projects.backbone_benchmark.tiles.choosing import KERNELS
from projects.backbone_benchmark.tiles.compiler import Compiler
from projects.backbone_benchmark.tiles.shapes import tasks_of
"""
TASKS = """
for task in tasks_of([Setting("T", (64, 96), 1, "bf16", "cuda")], KERNELS.values()):
    print(task.kernel.name, task.case.terms, sum(task.works.values()))
"""
COMPILE = """
settings = [Setting("T", (800, 1088), 1, "bf16", "cuda")]
compiler = Compiler(settings, (9, 0), 2)
task = tasks_of(settings, [KERNELS[NAME]])[0]
task = replace(task, works=dict(list(task.works.items())[:1]))
compiler.begin([task])
for blocks, why in compiler.failures(task, lambda: 1000).items():
    print(blocks, why)
compiler.close()
"""


@pytest.mark.long
def test_tasks_hold_all_blocks_of_a_network():
    found = [line.split() for line in printed_by(TASKS)]
    blocks = Counter()
    for name, _, count in found:
        blocks[name] += int(count)
    assert blocks == dict.fromkeys(KERNELS, 10)  # blocks of T
    forward = {terms for name, terms, _ in found if name == "attention_forward"}
    assert forward == {"32", "64"}  # to 7×7 and 14×14 keys, and to 28×28


@pytest.mark.long
@pytest.mark.parametrize("name", KERNELS)
def test_all_candidates_compile_for_an_h100_without_one(name):
    """On one shape, windows of stage 1; none needs more shared memory than an H100 has."""
    assert printed_by(f"NAME = {name!r}\n{COMPILE}") == []
