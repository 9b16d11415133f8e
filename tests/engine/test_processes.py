"""Several processes: one run, which can be left and resumed, and does what one process does."""

import json
import os
import signal
import time

import pytest
import torch
from conftest import write_coco
from detectron2.utils import comm
from marks import long_but
from models import randomize
from processes import detection_config, run
from regression import Regression, make_trainer

from mvitv2_det import UserError
from mvitv2_det.engine import build_model, evaluate, run_hooks, train
from mvitv2_det.engine.launch import Place, find_place
from mvitv2_det.engine.peers import PeerWatch
from mvitv2_det.engine.signals import Preempted


def train_detector(folder, name, *, seed=3, resume=False, leave=False):
    cfg = detection_config(
        folder,
        f"train.output_dir={folder}/{name}",
        f"train.seed={seed}",
        "train.model_ema.enabled=true",
    )
    os.makedirs(cfg.train.output_dir, exist_ok=True)
    if leave:
        # One process alone gets the signal; all must stop after the same step.
        before = run_hooks.LoggedWindow.before_step

        def send(self):
            if self.trainer.iter == 1 and torch.distributed.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            before(self)

        run_hooks.LoggedWindow.before_step = send
        try:
            with pytest.raises(Preempted):
                train(cfg, resume=resume)
        finally:
            run_hooks.LoggedWindow.before_step = before
    else:
        train(cfg, resume=resume)


@pytest.mark.long
def test_two_processes_are_left_and_resumed_bit_for_bit(coco_folder):
    run(_leave_and_resume, coco_folder, coco_folder)
    whole, left = (
        torch.load(coco_folder / name / "model_final.pth", weights_only=True)
        for name in ("whole", "left")
    )
    assert whole["run"] == left["run"] and whole["run"]["processes"] == 2
    for part in ("model", "model_ema"):
        for name, weight in whole[part].items():
            assert torch.equal(weight, left[part][name]), name
    optimizers = [content["trainer"]["optimizer"]["state"] for content in (whole, left)]
    for number, state in optimizers[0].items():
        assert torch.equal(state["exp_avg_sq"], optimizers[1][number]["exp_avg_sq"])


def _leave_and_resume(folder):
    """In one group of processes, as it takes long to start one."""
    train_detector(folder, "whole")
    train_detector(folder, "left", leave=True)
    assert not (folder / "left" / "model_final.pth").exists()
    train_detector(folder, "left", resume=True)


def fit(out, **options):
    trainer = make_trainer(**options)
    trainer.train(0, 10)
    torch.save({k.removeprefix("module."): v for k, v in trainer.model.state_dict().items()}, out)


def _fit(out):
    fit(out) if torch.distributed.get_rank() == 0 else fit(out + ".other")


def _fit_in_parts(out):
    fit(out if torch.distributed.get_rank() == 0 else out + ".other", accumulate=2)


@pytest.mark.long
def test_two_processes_and_parts_are_one_at_the_whole_batch(tmp_path):
    """Tolerance: float32, ten steps, sums in another order."""
    fit(str(tmp_path / "one"))
    fit(str(tmp_path / "parts"), accumulate=3)
    run(_fit, tmp_path, str(tmp_path / "two"))
    run(_fit_in_parts, tmp_path, str(tmp_path / "two_parts"), name="parts_meet")
    one = torch.load(tmp_path / "one")
    moved = Regression().state_dict()
    for other in ("parts", "two", "two.other", "two_parts"):
        for name, weight in torch.load(tmp_path / other).items():
            torch.testing.assert_close(weight, one[name], rtol=1e-5, atol=1e-6)
            assert not torch.allclose(weight, moved[name], rtol=1e-2)


def _evaluate(folder, out):
    cfg = detection_config(folder, f"train.output_dir={out}")
    torch.manual_seed(0)
    model = randomize(build_model(cfg))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "box_predictor" in name:
                parameter *= 0.1  # else one box scores all
    first, kept = model.backbone.bottom_up.blocks[0], []
    model.register_forward_pre_hook(lambda *_: kept.append(first.kept))
    results = evaluate(cfg, model.eval())
    assert None not in kept and first.kept is None  # weights are constant meanwhile
    if comm.is_main_process():
        torch.save(results, f"{out}/results")
    else:
        assert results == {}


@pytest.mark.long
def test_two_processes_evaluate_what_one_does(tmp_path):
    """Every digit of the results, of five images, which two processes cannot share evenly."""
    write_coco(tmp_path, "train", 2)
    truth = write_coco(tmp_path, "val", 5)
    for name in ("first", "one", "two"):
        (tmp_path / name).mkdir()
    found = "inference/coco_instances_results.json"
    _evaluate(tmp_path, tmp_path / "first")
    # What some of the detections are is the truth now: otherwise all of the results were 0.
    truth["annotations"] = [
        {**result, "id": number, "area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0}
        for number, result in enumerate(json.loads((tmp_path / "first" / found).read_text()))
        if number % 3 == 0
    ]
    (tmp_path / "val.json").write_text(json.dumps(truth))
    _evaluate(tmp_path, tmp_path / "one")
    run(_evaluate, tmp_path, tmp_path, str(tmp_path / "two"), name="meet_two")
    one, two = (torch.load(tmp_path / name / "results") for name in ("one", "two"))
    assert repr(one) == repr(two) and 1 < one["bbox"]["AP"] < 99 and 1 < one["segm"]["AP"] < 99
    one, two = (json.loads((tmp_path / name / found).read_text()) for name in ("one", "two"))
    assert len(one) > 5 and sorted(one, key=str) == sorted(two, key=str)


# Peers.


def _die(out, how):
    from mvitv2_det.engine import peers

    peers._DEAD_AFTER, peers._PERIOD = 2.0, 0.2
    lines = []
    watch = PeerWatch("127.0.0.1", timeout=1.0 if how == "still" else 99.0, end=lines.append)
    rank = torch.distributed.get_rank()
    numbers = comm.all_gather(os.getpid())
    if how == f"{rank} frozen":
        os.kill(os.getpid(), signal.SIGSTOP)  # until the other has noticed
    end = time.monotonic() + (3 if how == "well" else 20)
    while not lines and time.monotonic() < end and how != f"{rank} frozen":
        if how == "well" or (how == "still" and rank == 0):
            watch.advance()
        time.sleep(0.1)
    os.kill(numbers[1 - rank], signal.SIGCONT)
    with open(f"{out}.{rank}", "w") as file:
        file.write("".join(lines))
    torch.distributed.barrier()
    os._exit(0)


GONE = [
    ("0 frozen", 0, "has shown no sign of life for"),
    ("1 frozen", 1, "has shown no sign of life for"),
    ("still", 1, "has stood still for"),
    ("well", None, ""),
]


@pytest.mark.parametrize("case", long_but(GONE[1:2], GONE), ids=lambda case: case[0])
def test_a_process_that_is_gone_is_named(case, tmp_path):
    how, gone, words = case
    run(_die, tmp_path, str(tmp_path / "said"), how)
    said = (tmp_path / f"said.{1 - (gone or 0)}").read_text()
    assert words in said and bool(said) == bool(words)
    assert not words or said.startswith(f"process {gone} of 2 (on ")


# Where a process is.

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node1", "MASTER_PORT": "29500",
}  # fmt: skip
SLURM = {
    "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_JOB_ID": "41234",
}  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"RANK": "0", **{k: v for k, v in TORCHRUN.items() if k != "RANK"}, "WORLD_SIZE": "1",
          "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, None),
        (TORCHRUN, Place(3, 4, 1, 2, "tcp://node1:29500")),
        (TORCHRUN | {"TORCHELASTIC_RUN_ID": "x"}, Place(3, 4, 1, 2, "env://")),
        (SLURM, Place(3, 4, 1, 2, "tcp://gpu07:16234")),
        (SLURM | {"SLURM_STEP_NODELIST": "a1,a2", "MASTER_PORT": "9"}, Place(3, 4, 1, 2, "tcp://a1:9")),
        # The batch script of a job, which is one process.
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}, None),
    ],
)  # fmt: skip
def test_what_torchrun_and_slurm_say(environment, expected):
    assert find_place(environment) == expected


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "no MASTER_ADDR"),
        (TORCHRUN | {"RANK": "x"}, "numbers of processes are wrong: .*'x'"),
        (TORCHRUN | {"RANK": "4"}, "this is process 4 of 4"),
        (TORCHRUN | {"WORLD_SIZE": "5"}, "all machines must have as many"),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "3,1"}, r"is \[3, 1\]"),
    ],
)
def test_what_cannot_be(environment, words):
    with pytest.raises(UserError, match=words):
        find_place(environment)
