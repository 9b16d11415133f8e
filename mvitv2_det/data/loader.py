"""A training loader that can start anywhere, and gives the batches that it would have given there.

It takes the arguments of Detectron2's ``build_detection_train_loader``, whose position is lost when
a run ends: here the order of the images and the augmentation of each follow from the run's seed and
the image's position in the run (:mod:`mvitv2_det.randomness`), whatever the number of workers.

A position counts the images of all processes from the beginning of the run, from 0 on.
"""

import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.data.common import DatasetFromList
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import Unreadable, UserError
from ..randomness import ORDER, SAMPLE, derived_seed, seeded
from ..stop_signals import unheard_by_children

logger = logging.getLogger(__name__)

_TRIES = 20


class TrainLoader:
    """Batches of one process, without end.

    Args:
        dataset: samples by index. One that raises :class:`~mvitv2_det.errors.Unreadable` is
            replaced: by any other, or by one of ``dataset.alternatives(index)``, a list of indices,
            where it has such a method. Of a stream, by another of the batch.
        batches: of pairs (position, index), from any batch on; of a stream, (position, sample).
        collate: makes a batch of a list of samples.
        options: further keywords of ``DataLoader``.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batches: "Order",
        *,
        collate: Callable[[list[Any]], Any] = list,
        **options: Any,
    ) -> None:
        self.dataset = dataset
        self.batches = batches
        self.collate = collate
        self.options = options
        self.seed = 0
        self.max_unreadable = 0
        # Files that could not be read until now, in this process and since it started.
        self.unreadable: list[str] = []
        # Names of the last batch's images, where the data know them.
        self.names: list[str] = []
        self._batches_in_use: Iterator[Any] | None = None

    def start_at(self, batch: int, *, seed: int) -> None:
        """Makes the next iterator start with a batch of the run, counted from 0 on."""
        self.seed = self.batches.seed = seed
        self.batches.start = batch

    def close(self) -> None:
        """Ends the workers, also one that is stuck."""
        workers = getattr(self._batches_in_use, "_workers", ())
        self._batches_in_use = None
        for worker in workers:
            # They do not hear SIGTERM, which torch and Python send to those that do not end.
            if worker.is_alive():
                worker.kill()

    def __iter__(self) -> Iterator[Any]:
        loader = DataLoader(
            _SeededSamples(self.dataset, self.seed, by_number=isinstance(self.batches, BatchOrder)),
            batch_sampler=self.batches,
            collate_fn=_Collate(self.collate),
            # Otherwise it would take a number from the generator that the model draws from.
            generator=torch.Generator(),
            **{"worker_init_fn": _stay_quiet_if_left, **self.options},
        )
        with unheard_by_children():
            self._batches_in_use = iter(loader)
        while self._batches_in_use is not None:
            batch, self.names, unreadable = next(self._batches_in_use)
            for line in unreadable:
                self._count(line)
            yield batch

    def _count(self, line: str) -> None:
        self.unreadable.append(line)
        if len(self.unreadable) > self.max_unreadable:
            more = ""
            if self.max_unreadable:
                more = f"; {len(self.unreadable)} were unreadable until then"
            raise UserError(f"{line}{more}; train.max_unreadable allows more")
        logger.warning("%s; replaced by another (number %d)", line, len(self.unreadable))


class Order(Sampler[list[tuple[int, Any]]]):
    """The order of a run's samples, cut into batches of which each process takes its share.

    Attributes:
        seed: of the run.
        start: the first batch to give, counted from 0 on.

    Args:
        total_batch_size: samples of all processes together.

    Raises:
        UserError: the batch cannot be divided among the processes.
    """

    def __init__(self, total_batch_size: int) -> None:
        self.rank, self.processes = comm.get_rank(), comm.get_world_size()
        if total_batch_size < 1 or total_batch_size % self.processes:
            raise UserError(
                f"dataloader.train.total_batch_size must be a multiple of the {self.processes} "
                f"processes, got {total_batch_size}"
            )
        self.total_batch_size = total_batch_size
        self.seed = 0
        self.start = 0


class BatchOrder(Order):
    """The order of images that can be asked for by number.

    Args:
        size: number of images.
        total_batch_size: images of all processes together.
        sampler: a sampler as Detectron2 has them, which gives each process its own indices without
            end; by default all images are shuffled anew in each epoch.
        groups: a number for each image: a batch is of one group, such as images that lie.

    Raises:
        UserError: the batch cannot be divided among the processes, or there is no image.
    """

    def __init__(
        self,
        size: int,
        total_batch_size: int,
        *,
        sampler: Iterable[int] | None = None,
        groups: Sequence[int] | None = None,
    ) -> None:
        super().__init__(total_batch_size)
        if size < 1:
            raise UserError("there is no image to train on")
        self.size = size
        self.sampler = sampler
        self.groups = groups

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # What a sampler gives is this process's alone.
        own = self.sampler is not None
        length = self.total_batch_size // (self.processes if own else 1)
        share = slice(None) if own else slice(self.rank, None, self.processes)
        first, step = (self.rank, self.processes) if own else (0, 1)
        filling: dict[int, list[tuple[int, int]]] = defaultdict(list)
        batch = 0
        for count, index in enumerate(self._indices()):
            position = first + count * step
            group = self.groups[index] if self.groups is not None else 0
            filling[group].append((position, index))
            if len(filling[group]) == length:
                if batch >= self.start:
                    yield filling[group][share]
                filling[group] = []
                batch += 1

    def _indices(self) -> Iterator[int]:
        if self.sampler is not None:
            yield from self.sampler
            return
        epoch = 0
        while True:
            order = torch.Generator().manual_seed(derived_seed(self.seed, ORDER, epoch))
            yield from torch.randperm(self.size, generator=order).tolist()
            epoch += 1


class _SeededSamples(Dataset[Any]):
    """Samples by (position, index), each with a randomness of its own.

    One that cannot be read is replaced by another, which the position determines.
    """

    def __init__(self, dataset: Any, seed: int, *, by_number: bool) -> None:
        self.dataset = dataset
        self.seed = seed
        self.by_number = by_number

    def __getitems__(self, places: list[tuple[int, Any]]) -> list[tuple[Any, list[str]]]:
        indices = [index for _, index in places]
        return [self._sample(position, index, indices) for position, index in places]

    def _sample(self, position: int, index: Any, batch: list[Any]) -> tuple[Any, list[str]]:
        asked = index
        unreadable: list[str] = []
        for attempt in range(_TRIES):
            place_seed = derived_seed(self.seed, SAMPLE, position, attempt)
            if attempt:
                others = self._alternatives(asked, batch)
                index = others[place_seed % len(others)]
            try:
                with seeded(place_seed):
                    sample = self.dataset[index]
            except Unreadable as error:
                unreadable.append(str(error))
                continue
            if sample is not None:
                return sample, unreadable
        # So the main process counts them, and names the first.
        raise UserError(unreadable[0] if unreadable else f"{_TRIES} samples in turn were empty")

    def _alternatives(self, index: Any, batch: list[Any]) -> Sequence[Any]:
        if not self.by_number:  # of a stream no others are at hand
            return batch
        if hasattr(self.dataset, "alternatives"):
            return self.dataset.alternatives(index)
        return range(len(self.dataset))


def _stay_quiet_if_left(_: int) -> None:
    """Keeps a worker from printing a stack trace where the main process has been killed.

    Python's thread that hands tensors over prints one; errors of samples go another way.
    """
    before = sys.excepthook

    def print_others(kind: Any, error: BaseException, trace: Any) -> None:
        if not isinstance(error, EOFError | ConnectionError):
            before(kind, error, trace)

    sys.excepthook = print_others


class _Collate:
    """Keeps the names of the images beside a batch."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: list[tuple[Any, list[str]]]) -> tuple[Any, list[str], list[str]]:
        content = [sample for sample, _ in samples]
        names = [
            str(sample["file_name"])
            for sample in content
            if isinstance(sample, Mapping) and "file_name" in sample
        ]
        return self.collate(content), names, [line for _, lines in samples for line in lines]


class _Mapped(Dataset[Any]):
    """A data set with a mapper."""

    def __init__(self, dataset: Any, mapper: Callable[[Any], Any] | None) -> None:
        self.dataset = dataset
        self.mapper = mapper

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        sample = self.dataset[index]
        return self.mapper(sample) if self.mapper else sample


def build_train_loader(
    dataset: Any,
    *,
    mapper: Callable[[Any], Any] | None,
    sampler: Iterable[int] | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    **options: Any,
) -> TrainLoader:
    """Makes the training loader of a detector.

    Args:
        dataset: a list of records in Detectron2's format, or a data set of them with a length.
        mapper: makes a model's input of a record.
        sampler: see :class:`BatchOrder`.
        total_batch_size: images of all processes together.
        aspect_ratio_grouping: whether a batch, of all processes together, has images that lie or
            images that stand, which need less padding; records then have ``width`` and ``height``.
        num_workers: of each process.
        collate_fn: makes a batch of a list of inputs; by default it stays a list.
        options: further keywords of ``DataLoader``.

    Raises:
        UserError: as :class:`BatchOrder`.
    """
    groups = None
    if aspect_ratio_grouping:
        groups = [int(record["width"] > record["height"]) for record in dataset]
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    order = BatchOrder(len(dataset), total_batch_size, sampler=sampler, groups=groups)
    return TrainLoader(
        _Mapped(dataset, mapper),
        order,
        collate=collate_fn or list,
        num_workers=num_workers,
        **options,
    )
