"""The training loader: every batch as it would have been, wherever it starts."""

import itertools
import os
import random
import signal
import time
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm

from mvitv2_det.data.loader import BatchOrder, build_train_loader
from mvitv2_det.errors import Unreadable, UserError
from mvitv2_det.stop_signals import STOP_SIGNALS

RECORDS = [
    {"file_name": f"{n}.png", "number": n, "width": 64 if n % 3 else 32, "height": 48}
    for n in range(11)
]


def mapper(record):
    """Draws of all three generators."""
    draws = random.random(), np.random.rand(), torch.rand(()).item()
    return {**record, "draws": draws}


def take(count, start=0, *, seed=3, workers=0, unreadable=(), limit=0, **options):
    def read(record):
        if record["number"] in unreadable:
            raise Unreadable(f"cannot read image {record['file_name']}: it is broken")
        return mapper(record)

    options = {"total_batch_size": 4, "aspect_ratio_grouping": False} | options
    loader = build_train_loader(RECORDS, mapper=read, num_workers=workers, **options)
    loader.max_unreadable = limit
    loader.start_at(start, seed=seed)
    batches = iter(loader)
    found = [next(batches) for _ in range(count)]
    loader.close()
    return found, loader


def numbers(batches):
    return [record["number"] for batch in batches for record in batch]


@pytest.mark.parametrize("grouping", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_it_goes_on_where_it_was(grouping, workers):
    whole, _ = take(9, aspect_ratio_grouping=grouping)
    for start in (0, 1, 4, 7):
        found, _ = take(2, start, workers=workers, aspect_ratio_grouping=grouping)
        assert found == whole[start : start + 2]
    assert take(2, seed=4, aspect_ratio_grouping=grouping)[0] != whole[:2]


def test_each_epoch_has_each_image_once_in_another_order():
    found = numbers(take(11)[0])
    epochs = [found[first : first + 11] for first in range(0, 44, 11)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_a_run_that_is_left_again_and_again_sees_all_images():
    parts = [number for start in range(11) for number in numbers(take(1, start)[0])]
    assert Counter(parts) == Counter(4 * list(range(11)))


def test_batches_are_of_one_group():
    for batch in take(12, aspect_ratio_grouping=True)[0]:
        assert len({record["width"] for record in batch}) == 1


def test_samples_leave_the_generators_alone():
    for generators in (
        random.getstate,
        lambda: np.random.get_state()[1].tolist(),
        torch.get_rng_state,
    ):
        before = generators()
        take(2)
        assert (
            np.array_equal(before, generators())
            if torch.is_tensor(before)
            else before == generators()
        )


@pytest.mark.parametrize("grouping", [False, True])
def test_processes_share_what_one_would_have(grouping, monkeypatch):
    whole, _ = take(5, aspect_ratio_grouping=grouping)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        shares.append(take(5, aspect_ratio_grouping=grouping)[0])
    for batch, first, second in zip(whole, *shares, strict=True):
        assert batch[0::2] == first and batch[1::2] == second


def test_a_sampler_of_detectron2():
    orders = []
    for start in (0, 2):
        sampler = TrainingSampler(11, seed=7)
        orders.append(numbers(take(4 - start, start, sampler=sampler)[0]))
    theirs = list(zip(TrainingSampler(11, seed=7), range(16), strict=False))
    assert orders[0] == [index for index, _ in theirs]
    assert orders[1] == orders[0][8:]


def test_unreadable_images_are_replaced_and_counted(caplog):
    found, loader = take(6, unreadable=(4, 5), limit=9)
    assert not {4, 5} & set(numbers(found)) and len(numbers(found)) == 24
    assert caplog.text.count("cannot read image") == len(loader.unreadable) >= 4
    assert found == take(6, unreadable=(4, 5), limit=9, workers=2)[0]
    pairs = zip(itertools.chain(*found), itertools.chain(*take(6)[0]), strict=True)
    replaced = [other["number"] for one, other in pairs if one != other]
    # What is not replaced is as it would have been.
    assert len(replaced) >= 4 and set(replaced) == {4, 5}


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_unreadable_images(workers):
    with pytest.raises(UserError, match=r"cannot read image \d+\.png.*max_unreadable"):
        take(12, unreadable=(4,), limit=1, workers=workers)
    with pytest.raises(UserError, match="4 were unreadable"):
        take(12, unreadable=(4, 5, 6), limit=3)
    with pytest.raises(Exception, match=r"cannot read image \d+\.png"):
        take(1, unreadable=range(11), limit=99, workers=workers)


def test_names_of_a_batch():
    found, loader = take(2)
    assert loader.names == [record["file_name"] for record in found[1]]


def test_wrong_batches(monkeypatch):
    with pytest.raises(UserError, match="no image to train on"):
        BatchOrder(0, 1)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(UserError, match="a multiple of the 2 processes, got 3"):
        BatchOrder(5, 3)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_workers_do_not_hear_the_signals_that_stop_a_run(number):
    """SLURM and Ctrl-C send them to workers too, while the step in progress still needs them."""
    options = dict(total_batch_size=4, aspect_ratio_grouping=False, num_workers=2)
    loader = build_train_loader(RECORDS, mapper=mapper, **options)
    loader.start_at(0, seed=3)
    batches = iter(loader)
    found = [next(batches)]
    workers = loader._batches_in_use._workers
    for worker in workers:
        os.kill(worker.pid, number)
    found += [next(batches) for _ in range(5)]
    assert found == take(6)[0] and all(worker.is_alive() for worker in workers)
    loader.close()
    assert not any(worker.is_alive() for worker in workers)
    assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_worker_that_is_stuck_is_ended(monkeypatch):
    """It does not hear the SIGTERM of torch, and Python would wait for it for ever."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    options = dict(total_batch_size=4, aspect_ratio_grouping=False, num_workers=1)
    stuck_at = take(2)[0][1][0]["number"]

    def read(record):
        time.sleep(60 if record["number"] == stuck_at else 0)
        return record

    loader = build_train_loader(RECORDS, mapper=read, prefetch_factor=8, **options)
    loader.start_at(0, seed=3)
    next(iter(loader))
    (worker,) = loader._batches_in_use._workers
    begun = time.monotonic()
    loader.close()
    worker.join(20)
    assert not worker.is_alive() and time.monotonic() - begun < 20
