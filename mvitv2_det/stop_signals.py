"""The signals that ask a run to stop, and children that must not hear them."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

# Windows has not all of them.
STOP_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
    if hasattr(signal, name)
]


@contextmanager
def unheard_by_children() -> Iterator[None]:
    """Lets processes that are started meanwhile never get :data:`STOP_SIGNALS`.

    SLURM, ``kill -- -GROUP`` and Ctrl-C send them to all processes of a run: workers of a loader
    would die of them in the middle of the step that is still to be finished and saved. Signals that
    arrive here meanwhile are held back until the end. The workers end when this process does.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    # A new process has the mask of the thread that starts it, in whatever way it is started.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
