"""Checkpoints are whole or not there, found by looking, and run nothing."""

import errno
import multiprocessing
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from mvitv2_det import UserError
from mvitv2_det.engine import checkpoint
from mvitv2_det.engine.checkpoint import (
    PeriodicCheckpointer,
    RunCheckpointer,
    check_fresh,
    find_newest,
    only_run_in,
)
from mvitv2_det.whole_files import written_whole


class Attack:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


class Part:
    """What checkpoints are made of beside the model."""

    def __init__(self, iteration=0):
        self.state = {"iteration": iteration, "optimizer": {}}

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def save(folder, name, iteration):
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, iteration)
    RunCheckpointer(model, str(folder), trainer=Part(iteration)).save(name)
    return folder / f"{name}.pth"


@pytest.fixture
def run(tmp_path):
    """Three checkpoints, the best of them the second, as a run leaves them."""
    save(tmp_path, "model_0000003", 3)
    save(tmp_path, "model_0000007", 7)
    save(tmp_path, "model_best", 7)
    save(tmp_path, "model_final", 9)
    return tmp_path


def test_the_newest_is_found_and_loaded(run):
    assert (run / "last_checkpoint").read_text() == "model_final.pth"
    assert find_newest(run) == run / "model_final.pth"
    model, part = nn.Linear(2, 2), Part()
    RunCheckpointer(model, str(run), trainer=part).resume(run / "model_final.pth")
    assert (model.weight == 9).all() and part.state["iteration"] == 9
    (run / "model_final.pth").unlink()
    assert find_newest(run) == run / "model_0000007.pth"
    assert find_newest(run / "none") is None


def halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    place = content.rindex(torch.full((1,), 9.0).numpy().tobytes())
    content[place] ^= 1
    file.write_bytes(content)


def link_outside(file):
    file.rename(file.parent.parent / "outside.pth")
    file.symlink_to(file.parent.parent / "outside.pth")


def link_to_itself(file):
    file.unlink()
    file.symlink_to(file)


def unpickle(file):
    file.write_bytes(pickle.dumps({"model": {}, "x": Attack(file.parent / "trace")}))


def unpickle_in_zip(file):
    torch.save({"model": nn.Linear(1, 1).state_dict(), "x": Attack(file.parent / "trace")}, file)


DAMAGE = {
    "halved": halve,
    "a bit": flip_a_bit,
    "empty": lambda file: file.write_bytes(b""),
    "missing": lambda file: file.unlink(),
    "binary": lambda file: file.write_bytes(bytes(range(256))),
    "text": lambda file: file.write_text("hello"),
    "folder": lambda file: (file.unlink(), file.mkdir()),
    "weights alone": lambda file: torch.save(nn.Linear(2, 2).state_dict(), file),
    "no optimizer": lambda file: torch.save(
        {"model": nn.Linear(2, 2).state_dict(), "trainer": {"iteration": 99}}, file
    ),
    "trainer is a list": lambda file: torch.save(
        {"model": nn.Linear(2, 2).state_dict(), "trainer": [1]}, file
    ),
    "link outside": link_outside,
    "link to itself": link_to_itself,
    "pickle": unpickle,
    "pickle in zip": unpickle_in_zip,
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_one_is_passed_over(case, run, caplog):
    DAMAGE[case](run / "model_final.pth")
    assert find_newest(run) == run / "model_0000007.pth"
    if case not in ("missing", "folder", "link outside", "link to itself"):
        assert "Passed over: checkpoint" in caplog.text and "model_final.pth" in caplog.text
    assert not (run / "trace").exists()


def test_none_readable_is_an_error_in_one_line(run):
    for file in run.glob("model_*.pth"):
        halve(file)
    with pytest.raises(UserError, match=r"none of the 4 checkpoints in .* can be read") as caught:
        find_newest(run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "pointer",
    [b"evil.pkl", b"/etc/passwd", b"../model.pth", b"", bytes(range(256)), b"model_0000003.pth",
     b"model_0000042.pth", b"\x1b[2J"],
)  # fmt: skip
def test_the_pointer_is_a_hint(pointer, run, caplog):
    (run / "evil.pkl").write_bytes(pickle.dumps(Attack(run / "trace")))
    (run / "last_checkpoint").write_bytes(pointer)
    assert find_newest(run) == run / "model_final.pth"
    assert ("Passed over" in caplog.text) == (pointer not in (b"", b"model_0000003.pth"))
    assert "\x1b" not in caplog.text and not (run / "trace").exists()
    (run / "last_checkpoint").unlink()
    (run / "last_checkpoint").mkdir()
    assert find_newest(run) == run / "model_final.pth"


def test_a_checkpoint_of_another_model(run):
    with pytest.raises(UserError, match=r"model_final\.pth is not of this run") as caught:
        RunCheckpointer(nn.Linear(3, 3), str(run)).resume(run / "model_final.pth")
    assert "\n" not in str(caught.value)


class FullDisk:
    def __init__(self, file, room, error):
        self.file, self.room, self.error = file, room, error

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(self.error, os.strerror(self.error))
        return self.file.write(data)

    def flush(self):
        self.file.flush()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT], ids=["full", "over a quota"])
@pytest.mark.parametrize("room", [0, 300])
def test_a_full_disk_leaves_the_last_one(room, error, run, monkeypatch):
    real = torch.save
    monkeypatch.setattr(
        torch, "save", lambda content, file: real(content, FullDisk(file, room, error))
    )
    with pytest.raises(UserError, match=r"cannot write checkpoint .*; earlier .* --resume"):
        save(run, "model_final", 12)
    assert find_newest(run) == run / "model_final.pth"
    assert checkpoint._read_iteration(run / "model_final.pth") == 9
    assert not list(run.glob(".writing-*"))


def test_a_name_appears_after_its_content(tmp_path, monkeypatch):
    """Content, then name, then folder reach the disk in this order."""
    done = []
    monkeypatch.setattr("mvitv2_det.whole_files._sync", lambda path: done.append(("sync", path)))
    replace = Path.replace
    monkeypatch.setattr(
        Path, "replace", lambda self, to: (done.append(("rename", to)), replace(self, to))
    )
    with written_whole(tmp_path / "a") as unfinished:
        unfinished.write_text("x")
        assert not (tmp_path / "a").exists()
    assert done == [("sync", unfinished), ("rename", tmp_path / "a"), ("sync", tmp_path)]
    with pytest.raises(FileNotFoundError), written_whole(tmp_path / "a"):
        pass  # nothing was written
    assert (tmp_path / "a").read_text() == "x" and len(list(tmp_path.iterdir())) == 1


def _hold(folder, ready):
    with only_run_in(folder):
        ready.set()
        multiprocessing.Event().wait(60)


def test_one_run_in_a_folder_at_a_time(tmp_path):
    (tmp_path / ".writing-x").mkdir()
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    other = context.Process(target=_hold, args=(tmp_path, ready))
    other.start()
    try:
        assert ready.wait(20)
        assert not (tmp_path / ".writing-x").exists()
        with (
            pytest.raises(UserError, match=f"in use by process {other.pid} on"),
            only_run_in(tmp_path),
        ):
            pass
    finally:
        other.kill()
        other.join()
    with only_run_in(tmp_path):
        pass


@pytest.mark.parametrize("name", ["config.yaml", "metrics.json"])
def test_a_folder_in_place_of_a_file_is_named(name, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name} is a folder"), only_run_in(tmp_path):
        pass


def test_a_fresh_start_needs_a_fresh_folder(run):
    with pytest.raises(UserError, match="add --resume"):
        check_fresh(run)
    check_fresh(run / "none")


class Trainer:
    start_iter, max_iter = 8, 12


def test_the_last_are_kept_also_over_a_resume(run):
    hook = PeriodicCheckpointer(RunCheckpointer(nn.Linear(2, 2), str(run)), 2, max_to_keep=2)
    hook.trainer = Trainer()
    hook.before_train()
    for iteration in range(8, 12):
        hook.step(iteration)
    names = sorted(file.name for file in run.glob("*.pth"))
    assert names == ["model_0000009.pth", "model_0000011.pth", "model_best.pth", "model_final.pth"]
