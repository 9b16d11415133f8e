"""Training on streams: every batch as it would have been, wherever it starts."""

import random
from collections import Counter
from itertools import islice

import pytest
import torch
from detectron2.utils import comm

from mvitv2_det.data.loader import TrainLoader
from mvitv2_det.data.streams import InOrder, Stream, StreamOrder
from mvitv2_det.errors import Unreadable, UserError


class Letters(Stream):
    """Letters, stored small, and decoded as capitals with a random number."""

    def __init__(self, letters="abcdefghijk", stated=None, unreadable=""):
        self.letters, self.unreadable = letters, unreadable
        self.stated = len(letters) if stated is None else stated
        self.read = 0

    def __len__(self):
        return self.stated

    def stored(self, *, seed, epoch=0, part=0, parts=1):
        letters = list(self.letters)
        if seed is not None:
            random.Random(seed).shuffle(letters)
        for letter in letters[part::parts]:
            self.read += 1
            yield letter

    def __getitem__(self, letter):
        if letter in self.unreadable:
            raise Unreadable(f"cannot read {letter}")
        return letter.upper(), torch.rand(()).item()


def take(count, start=0, *, stream=None, batch=4, workers=0, limit=0, seed=3):
    stream = stream or Letters()
    loader = TrainLoader(stream, StreamOrder(stream, batch), num_workers=workers)
    loader.max_unreadable = limit
    loader.start_at(start, seed=seed)
    found = list(islice(loader, count))
    loader.close()
    return found, loader


def letters(batches):
    return [letter for batch in batches for letter, _ in batch]


@pytest.mark.parametrize("workers", [0, 2])
def test_it_goes_on_where_it_was(workers):
    whole, _ = take(9)
    for start in (0, 2, 3, 7):
        assert take(2, start, workers=workers)[0] == whole[start : start + 2]
    assert take(9, seed=4)[0] != whole


def test_each_epoch_has_each_sample_once_in_another_order():
    found = letters(take(11)[0])
    epochs = ["".join(found[first : first + 11]) for first in range(0, 44, 11)]
    assert all(sorted(epoch) == list("ABCDEFGHIJK") for epoch in epochs)
    assert len(set(epochs)) == 4


def test_epochs_that_were_seen_are_not_read_again():
    stream = Letters()
    assert letters(take(1, 11 * 1000 + 2, stream=stream)[0])
    assert stream.read == 8 + 4


@pytest.mark.parametrize(("stated", "each"), [(9, {1, 2, 0}), (14, {2, 1})])
def test_an_epoch_has_as_many_samples_as_the_stream_states(stated, each):
    """One that states fewer than it has leaves some out; one that states more repeats some."""
    found = letters(take(stated, stream=Letters(stated=stated), batch=2)[0])
    for first in (0, stated):
        counts = Counter(found[first : first + stated])
        assert len(counts) == min(stated, 11) and set(counts.values()) <= each
    assert letters(take(3, 5, stream=Letters(stated=stated), batch=2)[0]) == found[10:16]


def test_each_process_has_its_part(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        shares.append(take(6, stream=Letters("abcdefgh"))[0])
        assert take(2, 3, stream=Letters("abcdefgh"))[0] == shares[-1][3:5]
    assert [len(batch) for batch in shares[0]] == [2] * 6
    for epoch in range(3):
        both = [letters(share[2 * epoch : 2 * epoch + 2]) for share in shares]
        assert sorted(both[0] + both[1]) == list("ABCDEFGH")
    # What is drawn for augmentation differs, too.
    assert not {n for b in shares[0] for _, n in b} & {n for b in shares[1] for _, n in b}


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_sample_is_replaced_by_another_of_its_batch(workers, caplog):
    whole, _ = take(3)
    found, loader = take(3, stream=Letters(unreadable="c"), limit=9, workers=workers)
    assert "cannot read c; replaced by another (number 1)" in caplog.text
    assert len(loader.unreadable) >= 1 and "C" not in letters(found)
    for batch, before in zip(found, whole, strict=True):
        assert set(letters([batch])) == set(letters([before])) - {"C"}
        pairs = zip(batch, before, strict=True)
        assert all(one == other for one, other in pairs if other[0] != "C")
    with pytest.raises(UserError, match=r"cannot read c.*train.max_unreadable allows more"):
        take(3, stream=Letters(unreadable="c"), workers=workers)


def test_streams_without_samples():
    with pytest.raises(UserError, match="no image to train on"):
        StreamOrder(Letters(""), 2)
    with pytest.raises(UserError, match="no sample of the stream"):
        take(1, stream=Letters("", stated=5))


def test_evaluation_sees_each_sample_once_in_order():
    batches = InOrder(Letters(), 4)
    assert ["".join(batch) for batch in batches] == ["abcd", "efgh", "ijk"] and len(batches) == 3
    assert len(InOrder(Letters(stated=0), 4)) == 1
