"""What ends a run before its time, and how: a checkpoint after the step, one line, an exit status.

SIGTERM, SIGUSR1 and SIGHUP come from schedulers, which act on the status :data:`PREEMPTED`; SIGINT
is Ctrl-C. A second SIGINT ends the run at once.
"""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ..stop_signals import STOP_SIGNALS

# EX_TEMPFAIL of BSD's sysexits.h: start the same command with --resume again.
PREEMPTED = 75
INTERRUPTED = 130  # what a shell gives for a process that Ctrl-C ended: 128 + SIGINT


class Preempted(Exception):
    """A signal has ended the run; its state is saved.

    Args:
        number: the signal's.
        saved: what has been saved, in words.
    """

    def __init__(self, number: int, saved: str) -> None:
        super().__init__(number, saved)
        name = signal.Signals(number).name if number else "another process"
        self.line = f"stopped by {name}: {saved}"
        self.status = INTERRUPTED if number == signal.SIGINT else PREEMPTED


class SignalWatch:
    """The first signal that has arrived, 0 as long as there is none."""

    def __init__(self) -> None:
        self.number = 0
        self._since = 0.0
        self.tell: Callable[[], None] = lambda: None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Notes a signal; what else is done waits for the end of the step."""
        # One Ctrl-C may arrive twice: from the terminal, and from the process that started this.
        if self.number and number == signal.SIGINT and time.monotonic() - self._since > 1:
            raise KeyboardInterrupt
        if not self.number:
            self.number, self._since = number, time.monotonic()
            self.tell()


@contextmanager
def watching_signals() -> Iterator[SignalWatch]:
    """Notes signals instead of ending, for a while.

    Only the main thread can: in any other, signals do what they did before.
    """
    watch = SignalWatch()
    if threading.current_thread() is not threading.main_thread():
        yield watch
        return
    before = {number: signal.signal(number, watch.handle) for number in STOP_SIGNALS}
    try:
        yield watch
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def report(error: Preempted) -> int:
    """Says why a run has ended; returns the exit status."""
    print(error.line, file=sys.stderr)
    return error.status
