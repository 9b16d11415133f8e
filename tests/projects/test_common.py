"""Turns, ratios, memory and limits, against numbers worked out by hand and against CUDA's own."""

import resource
import socket
from contextlib import contextmanager
from itertools import chain

import pytest
import torch
from torch import nn

from mvitv2_det import UserError
from projects.common.memory import (
    GIB,
    OutOfMemory,
    attempt,
    available_memory,
    limited_memory,
    peak_memory,
    saved_for_backward,
)
from projects.common.results import command_line, describe_machine
from projects.common.timing import Spread, Timing, interleave, resident

KIB = 1024
SCALARS = 64  # bytes: the 1 of x + 1 is a tensor within the operator
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def recorder(log: list, name: str, fails_in: int = 0):
    """A task that logs its turns; from its ``fails_in``-th iteration on there is no memory."""
    iterations = 0

    @contextmanager
    def task():
        def step():
            nonlocal iterations
            iterations += 1
            log.append(name)
            if fails_in and iterations >= fails_in:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

        log.append(f"{name} enters")
        yield step
        log.append(f"{name} leaves")

    return task


def test_tasks_take_turns():
    log, lines = [], []
    tasks = {name: recorder(log, name) for name in "ab"}
    times = interleave(tasks, rounds=3, iterations=2, warmup=1, progress=lines.append)
    turns = [["a enters", *"aaa", "a leaves"], ["b enters", *"bbb", "b leaves"]] * 3
    assert log == [*chain.from_iterable(turns)]
    assert [len(times[name].seconds) for name in "ab"] == [3, 3]
    assert len(lines) == 6 and lines[-1].startswith("round 3/3  b: ")


def test_a_task_without_memory_gets_no_more_turns_and_the_rest_goes_on():
    log, lines = [], []
    tasks = {"a": recorder(log, "a"), "b": recorder(log, "b", fails_in=2), "c": recorder(log, "c")}
    times = interleave(tasks, rounds=3, warmup=0, progress=lines.append)
    assert [word for word in log if " " not in word] == [*"abc", *"abc", *"ac"]
    assert isinstance(times["b"], OutOfMemory)
    assert isinstance(times["a"], Timing) and isinstance(times["c"], Timing)
    assert "round 2/3  b: out of memory" in lines


def test_other_errors_pass():
    def fail():
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        interleave({"a": resident(fail)}, rounds=1)


@pytest.mark.parametrize("numbers", [{"rounds": 0}, {"iterations": 0}, {"warmup": -1}])
def test_wrong_numbers(numbers):
    ((name, value),) = numbers.items()
    with pytest.raises(UserError, match=f"{name} must be at least .*, got {value}"):
        interleave({}, **{"rounds": 1} | numbers)


def test_time_is_that_of_one_iteration_without_warmup():
    moments = iter([0.0, 6.0, 100.0, 104.0])
    task = resident(lambda: None)
    times = interleave({"a": task}, rounds=2, iterations=2, clock=lambda: next(moments))
    assert times["a"].seconds == (3.0, 2.0)


def test_speed_is_compared_within_rounds():
    """A drift that doubles all times changes no ratio."""
    base, twice = Timing((1.0, 2.0, 4.0)), Timing((0.5, 1.0, 2.0))
    assert twice.speed_over(base) == Spread(2.0, 2.0, 2.0)
    assert Timing((1.0, 2.0, 3.0, 4.0, 5.0)).spread == Spread(3.0, 2.0, 4.0)


# Memory.


def three(side: int = 256):
    """Three tensors of 4·side² bytes, of which two exist at a time."""
    first = torch.zeros(side, side)
    second = first + 1
    del first
    third = second + 1
    del second
    return third


def test_peak_counts_what_exists_at_once():
    assert peak_memory(resident(three), "cpu") == pytest.approx(2 * 256 * KIB, abs=SCALARS)


def test_peak_counts_weights_once():
    weights = torch.zeros(256, 256)
    held = [weights, weights[:1], torch.zeros(2, 2, device="meta")]
    peak = peak_memory(resident(three), "cpu", held=held)
    assert peak == pytest.approx(3 * 256 * KIB, abs=SCALARS)


def training(model: nn.Module, device: str = "cpu"):
    @contextmanager
    def task():
        model.to(device)
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
        images = torch.ones(1, 512, device=device)

        def step():
            optimizer.zero_grad()
            model(images).sum().backward()
            optimizer.step()

        yield step

    return task


def test_peak_of_training_is_weights_gradients_and_two_moments():
    """Of 1 MiB each; activations are small, and AdamW has one or two temporaries."""
    model = nn.Linear(512, 512, bias=False)
    peak = peak_memory(training(model), "cpu", held=model.parameters())
    assert 5 * 1024 * KIB <= peak <= 6.1 * 1024 * KIB


@pytest.mark.gpu
@NO_GPU
def test_peak_of_training_is_that_of_cuda():
    model = nn.Sequential(nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 512))
    peaks = [peak_memory(training(model, d), d, held=model.parameters()) for d in ("cpu", "cuda")]
    # cuBLAS takes a workspace, the same for all sizes.
    assert peaks[0] <= peaks[1] <= peaks[0] + 40 * 1024 * KIB


def test_saved_for_backward():
    """A linear layer keeps its input, GELU its input; the weights exist anyway."""
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 32))
    images = torch.ones(10, 64)
    expected = 4 * 10 * (64 + 128 + 128)
    saved = saved_for_backward(lambda: model(images), model.parameters())
    assert saved == expected
    weights = sum(4 * weight.numel() for weight in (model[2].weight,))
    assert saved_for_backward(lambda: model(images)) == expected + weights


def test_saved_views_share_a_storage():
    x = torch.ones(100, requires_grad=True)
    assert saved_for_backward(lambda: (x * x[:]).sum() + x.view(10, 10).exp().sum()) == 800


# Limits.


@pytest.mark.skipif(available_memory() is None, reason="the system does not say what is free")
def test_memory_beyond_the_limit_fails_and_comes_back():
    before = resource.getrlimit(resource.RLIMIT_DATA)

    def allocate(count):
        return [torch.empty(GIB // 8, dtype=torch.uint8) for _ in range(count)]

    with limited_memory("cpu", GIB // 2) as limit:
        assert limit == GIB // 2
        assert isinstance(attempt(lambda: allocate(16)), OutOfMemory)
        # What the failed attempt held is free again.
        assert len(attempt(lambda: allocate(2))) == 2
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@pytest.mark.skipif(available_memory() is None, reason="the system does not say what is free")
def test_default_limit_is_nine_tenths_of_what_is_free():
    with limited_memory("cpu") as limit:
        assert limit == pytest.approx(0.9 * available_memory(), rel=0.2)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("could not create a memory object"),
        MemoryError(),
    ],
)
def test_errors_of_allocators(error):
    def fail():
        raise error

    assert isinstance(attempt(fail), OutOfMemory)


# The head of a result.


def test_machine_is_described_but_not_named():
    described = describe_machine("cpu")
    assert set(described) == {"CPU", "versions", "date"}
    assert f"torch {torch.__version__}" in described["versions"]
    assert "mvitv2_det" in described["versions"] and "detectron2" in described["versions"]
    assert socket.gethostname() not in " ".join(described.values())


def test_command_shows_no_folder_of_this_machine():
    shown = command_line("run.py", ["--table", "4b", "--output", "/home/user/some results"])
    assert shown == "python run.py --table 4b --output 'some results'"
