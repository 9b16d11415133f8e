"""Steps that fail, and hooks over a resume, in trainings of milliseconds."""

import json
import logging

import pytest
import torch
from detectron2.engine import hooks
from detectron2.utils.events import EventWriter
from regression import Regression, make_trainer

from mvitv2_det import UserError
from mvitv2_det.engine.checkpoint import PeriodicCheckpointer, RunCheckpointer
from mvitv2_det.engine.faults import describe_fault, naming_faults
from mvitv2_det.engine.run_hooks import (
    BestCheckpointer,
    Evaluation,
    Finished,
    LenientWriter,
    LoggedWindow,
    forget_later_metrics,
)


class Diverges(Regression):
    """The loss is not finite in some iterations; Detectron2's proposals raise an error."""

    def __init__(self, *iterations, raises=False):
        super().__init__()
        self.iterations, self.raises, self.step = iterations, raises, -1

    def forward(self, batch):
        self.step += 1
        losses = super().forward(batch)
        if self.step in self.iterations:
            if self.raises:
                raise FloatingPointError("Predicted boxes contain Inf/NaN")
            losses["loss"] = losses["loss"] * torch.nan
        return losses


@pytest.mark.parametrize("raises", [False, True])
def test_steps_that_are_not_finite_are_skipped(raises, caplog):
    trainer = make_trainer(Diverges(2, 3, raises=raises), max_non_finite=2)
    weights = {}
    trainer.register_hooks([Noting(weights)])
    with caplog.at_level(logging.WARNING):
        trainer.train(0, 6)
    assert caplog.text.count("Skipped a step") == 2
    assert "the loss of iteration 2 is not finite" in caplog.text
    assert torch.equal(weights[1], weights[2]) and torch.equal(weights[2], weights[3])
    assert not torch.equal(weights[3], weights[4]) and weights[5].isfinite().all()
    assert trainer.non_finite == 0


def test_gradients_are_clipped():
    """Against torch's own step by step; tolerance: float32."""
    trainer = make_trainer(clip_norm=0.01)
    trainer.train(0, 3)
    model = make_trainer().model
    loader, optimizer = (
        make_trainer().data_loader,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    )
    batches, norms = iter(loader), []
    for _ in range(3):
        optimizer.zero_grad()
        model(next(batches))["loss"].backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01))
        optimizer.step()
    for ours, theirs in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert min(norms) > 0.02


class Noting(hooks.HookBase):
    def __init__(self, weights):
        self.weights = weights

    def after_step(self):
        self.weights[self.trainer.iter] = self.trainer.model.net[0].weight.detach().clone()


def test_too_many_in_a_row_end_the_run_and_name_the_images():
    trainer = make_trainer(Diverges(1, 2, 3), max_non_finite=2)
    trainer.data_loader.names = ["a.png"]
    with pytest.raises(
        UserError, match=r"the loss of iteration 3 is not finite .* lower optimizer"
    ):
        trainer.train(0, 6)
    with pytest.raises(UserError, match="iteration 1 is not finite"):
        make_trainer(Diverges(1)).train(0, 6)


def run(folder, values, start=0, end=12, patience=None, kill_in_evaluation=()):
    """Trains with an evaluation after every second step, which gives the next of the values."""
    trainer = make_trainer()
    done = []

    def evaluate():
        iteration = min(trainer.storage.iter, end - 1)  # at the end, it is one further
        if iteration in kill_in_evaluation:
            raise KeyboardInterrupt
        done.append(iteration)
        return {"bbox": {"AP": values[iteration]}}

    checkpointer = RunCheckpointer(trainer.model, str(folder), trainer=trainer)
    evaluation = Evaluation(2, evaluate)
    best = BestCheckpointer(evaluation, checkpointer, "bbox/AP", patience)
    saves = PeriodicCheckpointer(checkpointer, 2)
    trainer.register_hooks([LoggedWindow(), saves, evaluation, best])
    if start:
        checkpointer.resume(folder / f"model_{start - 1:07d}.pth")
    try:
        trainer.data_loader.start_at(start, seed=1)
        trainer.train(start, end)
    except (Finished, KeyboardInterrupt) as error:
        return done, best, error
    return done, best, None


VALUES = {1: 3.0, 3: 5.0, 5: 4.0, 7: 4.5, 9: 4.9, 11: 6.0}


def test_patience_ends_the_run(tmp_path):
    done, _, error = run(tmp_path, VALUES, patience=3)
    assert done == [1, 3, 5, 7, 9]
    assert "3 evaluations in a row without a better bbox/AP than that of iteration 3" in str(error)
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["iteration"] == 3
    # A run that has ended so does not go on.
    done, _, error = run(tmp_path, VALUES, start=10, patience=3)
    assert isinstance(error, Finished) and len(done) <= 1
    (tmp_path / "patient").mkdir()
    done, _, error = run(tmp_path / "patient", VALUES, patience=4)
    assert done == [1, 3, 5, 7, 9, 11] and error is None


def test_the_best_and_patience_are_known_after_a_resume(tmp_path):
    run(tmp_path, VALUES, end=6)
    _, best, error = run(tmp_path, VALUES, start=6, patience=3)
    assert best.best_metric == 5.0 and isinstance(error, Finished)
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["iteration"] == 3


def test_an_evaluation_that_was_left_is_made_up_for(tmp_path):
    done, _, _ = run(tmp_path, VALUES, kill_in_evaluation=(3,))
    assert done == [1]
    done, best, _ = run(tmp_path, VALUES, start=4, end=8)
    assert done == [3, 5, 7] and best.best_metric == 5.0
    # What was evaluated is not evaluated again.
    done, _, _ = run(tmp_path, VALUES, start=6, end=8)
    assert done == [5, 7]  # the checkpoint of iteration 5 is older than its evaluation


def test_a_final_checkpoint_that_is_missing_is_saved_by_resuming(tmp_path):
    run(tmp_path, VALUES)
    final = tmp_path / "model_final.pth"
    before = torch.load(final, weights_only=True)
    final.unlink()
    run(tmp_path, VALUES, start=12)
    after = torch.load(final, weights_only=True)
    assert after["iteration"] == after["trainer"]["iteration"] == 11
    assert all(torch.equal(before["model"][k], after["model"][k]) for k in before["model"])


def test_later_metrics_are_forgotten(tmp_path):
    file = tmp_path / "metrics.json"
    lines = [json.dumps({"iteration": number, "total_loss": 1.0}) for number in range(5)]
    file.write_text("\n".join(lines) + '\n{"iteration": 5, "tot')
    forget_later_metrics(file, 4)  # that of iteration 3 is written again
    assert file.read_text() == "\n".join(lines[:3]) + "\n"
    forget_later_metrics(tmp_path / "none.json", 3)


def test_a_log_that_cannot_be_written_does_not_stop_training(caplog):
    class Full(EventWriter):
        def write(self):
            raise OSError(28, "No space left on device")

    trainer = make_trainer()
    trainer.register_hooks([hooks.PeriodicWriter([LenientWriter(Full())], period=1)])
    trainer.train(0, 4)
    assert trainer.iter == 4 and caplog.text.count("Full cannot write") == 1


FAULTS = {
    torch.OutOfMemoryError("CUDA out of memory"): "the GPU has too little memory: a smaller",
    RuntimeError("DefaultCPUAllocator: can't allocate memory"): "there is too little memory",
    MemoryError(): "there is too little memory",
    RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "): "a worker of the",
    RuntimeError("DataLoader worker (pid(s) 1, 2) exited unexpectedly"): "a worker of the loader",
    RuntimeError(
        "[pair.cc:534] Connection closed by peer [127.0.0.1]:1"
    ): "the connection to another",
    OSError(28, "No space left on device", "/x/log.txt"): "the system refuses /x/log.txt: No space",
}


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_faults_from_outside_are_one_line(error):
    trainer = make_trainer()
    trainer.iter = 7
    with (
        pytest.raises(UserError, match=f"training ended in iteration 7: {FAULTS[error]}"),
        naming_faults(trainer),
    ):
        raise error
    assert describe_fault(KeyError("x")) is None
    with pytest.raises(KeyError), naming_faults(trainer):
        raise KeyError("x")


def test_a_process_that_is_lost_before_training_is_looked_for():
    class Peers:
        asked = 0

        def find_gone(self):
            self.asked += 1

    peers = Peers()
    with pytest.raises(UserError, match=r"^the connection to another"), naming_faults(peers=peers):
        raise RuntimeError("gloo/pair.cc:545 Read error: Connection reset by peer")
    assert peers.asked == 1
    with pytest.raises(UserError, match="too little memory"), naming_faults(peers=peers):
        raise MemoryError
    assert peers.asked == 1
