"""Training on streams, of which no sample can be asked for by number, from any batch on.

The process that trains reads the samples as they are stored, shuffled by a seed; its loader's
workers decode and augment them. So the order does not depend on the number of workers. A run that
goes on begins with the epoch in which it was left and reads over what it has seen of it, which
costs no decoding.
"""

import itertools
import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from detectron2.utils import comm
from torch.utils.data import Dataset, Sampler

from ..errors import UserError
from ..randomness import ORDER, derived_seed
from .loader import Order


class Stream(Dataset[Any]):
    """A stream of samples; ``stream[stored]`` decodes one."""

    @abstractmethod
    def __len__(self) -> int:
        """Samples of an epoch, in all processes; 0 if it is not known."""

    @abstractmethod
    def stored(
        self, *, seed: int | None, epoch: int = 0, part: int = 0, parts: int = 1
    ) -> Iterator[Any]:
        """Reads the samples as they are stored, once.

        Args:
            seed: of their order; None leaves it as it is.
            epoch: for streams that have seeds of their own.
            part: the process's share, of as many as ``parts``.
        """


class StreamOrder(Order):
    """The order of a stream's samples.

    An epoch has equally many in each process: where its part of the stream has fewer it is read
    again, and where it has more the rest is left out, as timm does it.

    Args:
        stream: the samples.
        total_batch_size: samples of all processes together.

    Raises:
        UserError: the batch cannot be divided among the processes, or there is no sample.
    """

    def __init__(self, stream: Stream, total_batch_size: int) -> None:
        super().__init__(total_batch_size)
        if len(stream) < 1:
            raise UserError("there is no image to train on")
        self.stream = stream

    def __iter__(self) -> Iterator[list[tuple[int, Any]]]:
        share = self.total_batch_size // self.processes
        length = math.ceil(len(self.stream) / self.processes)
        samples = self._from(self.start * share, length)
        for batch in itertools.count(self.start):
            places = range(batch * share, (batch + 1) * share)
            yield [(place * self.processes + self.rank, next(samples)) for place in places]

    def _from(self, first: int, length: int) -> Iterator[Any]:
        """The samples of this process, of epochs of a length, without end."""
        epoch, seen = divmod(first, length)
        while True:
            yield from itertools.islice(self._again_and_again(epoch), seen, length)
            epoch, seen = epoch + 1, 0

    def _again_and_again(self, epoch: int) -> Iterator[Any]:
        for reading in itertools.count():
            seed = derived_seed(self.seed, ORDER, epoch, reading)
            found = self.stream.stored(seed=seed, epoch=epoch, part=self.rank, parts=self.processes)
            is_empty = True
            for sample in found:
                is_empty = False
                yield sample
            if is_empty:
                raise UserError("a process has no sample of the stream: use fewer processes")


class InOrder(Sampler[list[Any]]):
    """Batches of a stream as it is, once: each sample in one of the processes.

    Args:
        stream: the samples.
        batch_size: of a process; its last batch may have fewer.
    """

    def __init__(self, stream: Stream, batch_size: int) -> None:
        self.stream, self.batch_size = stream, batch_size
        self.part, self.parts = comm.get_rank(), comm.get_world_size()

    def __len__(self) -> int:
        """About so many; evaluation tells its progress by it."""
        return max(1, math.ceil(len(self.stream) / self.parts / self.batch_size))

    def __iter__(self) -> Iterator[list[Any]]:
        samples = self.stream.stored(seed=None, part=self.part, parts=self.parts)
        while batch := list(itertools.islice(samples, self.batch_size)):
            yield batch
