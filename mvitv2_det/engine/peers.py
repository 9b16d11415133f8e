"""Noticing that another process of a run is dead or frozen, which collectives wait for in vain.

Each process shows a sign of life every second, from a thread of its own; the first process looks at
all others, and they look at it. Whoever finds one missing says which, and all end.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial

import torch.distributed as dist
from detectron2.utils import comm

# The exit status of processes that end because another one has: EX_PROTOCOL of sysexits.h.
PEER_LOST = 76

_PERIOD = 1.0  # seconds between signs of life
# Seconds without one after which a process counts as dead: less than 30 with all that follows, and
# more than Python's lock is held by any library.
_DEAD_AFTER = 20.0
_DEAD_IF_LOST = 4.0  # the same where a connection to some process is lost already


class PeerWatch:
    """The thread of one process.

    Args:
        host: name or address of the first process's machine.
        timeout: seconds in which a process must get to its next step or evaluated batch.
        end: is called with the line to print; by default it ends the process.
    """

    def __init__(self, host: str, timeout: float, end: Callable[[str], None] | None = None) -> None:
        self.rank, self.processes = comm.get_rank(), comm.get_world_size()
        self.timeout = timeout
        self.end = end or _end
        self.progress = 0
        self._dead_after = _DEAD_AFTER
        self._stopped = threading.Event()
        open_store = partial(
            dist.TCPStore,
            host,
            wait_for_workers=False,
            timeout=timedelta(seconds=_DEAD_AFTER),
        )
        store = open_store(port=0, is_master=True) if self.rank == 0 else None
        places = comm.all_gather((socket.gethostname(), store.port if store else 0))
        self._hosts = [name for name, _ in places]
        self._store = store or open_store(port=places[0][1], is_master=False)
        self._thread = threading.Thread(target=self._watch, daemon=True, name="peers")
        self._thread.start()
        self._answered = time.monotonic()  # when the store did so for the last time
        if self.rank:
            threading.Thread(target=self._watch_first, daemon=True, name="first peer").start()

    def advance(self) -> None:
        """Tells the others that this process has got further."""
        self.progress += 1

    def find_gone(self) -> None:
        """Waits, as a connection is lost, until it is known which process is gone, if one is."""
        self._dead_after = _DEAD_IF_LOST
        self._thread.join(2 * _DEAD_IF_LOST)

    def stop(self) -> None:
        """Ends the thread, in all processes at the same time."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        others = [0] if self.rank else list(range(1, self.processes))
        now = time.monotonic()
        # By process: its last sign of life and progress, and when each has changed.
        seen = {rank: ("", 0, now, now) for rank in others}
        sign = 0
        while not self._stopped.wait(_PERIOD):
            last, now = now, time.monotonic()
            if now - last > self._dead_after / 2:
                # This process was frozen itself: the others get their time again.
                seen = {rank: (*seen[rank][:2], now, now) for rank in others}
            sign += 1
            try:
                self._store.set(f"alive/{self.rank}", f"{sign} {self.progress}")
                if self.rank and self._store.check(["lost"]):
                    self.end(self._store.get("lost").decode())
                    return
                signs = {
                    rank: self._store.get(f"alive/{rank}").decode()
                    for rank in others
                    if self._store.check([f"alive/{rank}"])
                }
            except Exception:  # the store was in the first process
                if not self._stopped.is_set():
                    self.end(f"{self._name(0)} has ended; so do the others")
                return
            self._answered = now
            for rank, text in signs.items():
                _, progress, alive, moved = seen[rank]
                new = int(text.split()[1])
                alive = now if text != seen[rank][0] else alive
                seen[rank] = (text, new, alive, now if new != progress else moved)
            line = self._find_lost(seen, now)
            if line:
                if self.rank == 0:
                    self._store.set("lost", line)
                    time.sleep(2 * _PERIOD)  # for the others to read it
                self.end(line)
                return

    def _watch_first(self) -> None:
        """Looks at the first process alone: if it is frozen, questions to its store never end."""
        now = time.monotonic()
        while not self._stopped.wait(_PERIOD):
            last, now = now, time.monotonic()
            if now - last > self._dead_after / 2:
                self._answered = now  # this process was frozen itself
            if now - self._answered > self._dead_after:
                self.end(self._silent(0, now - self._answered))
                return

    def _find_lost(self, seen: dict[int, tuple[str, int, float, float]], now: float) -> str:
        for rank, (_, _, alive, _) in seen.items():
            if now - alive > self._dead_after:
                return self._silent(rank, now - alive)
        # Where one stands still, soon all do: the one that is furthest behind is the reason.
        behind = min(seen, key=lambda rank: seen[rank][1])
        still = now - seen[behind][3]
        if self.rank == 0 and still > self.timeout:
            name = self._name(behind if seen[behind][1] < self.progress else 0)
            return (
                f"{name} has stood still for {still:.0f} s, more than train.peer_timeout: so the "
                f"others end, and --resume goes on"
            )
        return ""

    def _silent(self, rank: int, seconds: float) -> str:
        return (
            f"{self._name(rank)} has shown no sign of life for {seconds:.0f} s: it is dead or "
            f"frozen; so the others end, and --resume goes on"
        )

    def _name(self, rank: int) -> str:
        return f"process {rank} of {self.processes} (on {self._hosts[rank]})"


def _end(line: str) -> None:
    """Ends this process, whose main thread may wait for ever in a collective."""
    print(f"error: {line}", file=sys.stderr, flush=True)
    os._exit(PEER_LOST)
