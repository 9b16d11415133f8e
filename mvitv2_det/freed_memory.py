"""Memory that is freed is kept for the next pass, by the C library of Linux."""

import ctypes
import os
import sys

# What glibc is told, by number of mallopt(3) and by environment variable: bytes from which a buffer
# is no part of the heap, and bytes of the heap that may be free. Older glibc refuses the former
# above 32 MiB; with the latter alone even small buffers would be mapped anew, so it comes second.
_OPTIONS = {
    "MALLOC_MMAP_THRESHOLD_": (-3, 2**30),
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
}
# The same for processes that are started.
ENVIRONMENT = {name: str(value) for name, (_, value) in _OPTIONS.items()}


def keep_freed_memory() -> bool:
    """Has this process keep memory that it frees, where its C library is glibc.

    By default glibc gives large buffers back to the system, and the next pass waits until it has
    zeroed them again, page by page. On a CPU that is 15 % of T's inference, 3 to 5 % of B's, and
    more of Detectron2's MViT, which needs more memory. A process needs
    2 % more at its peak, with tiles of large images 15 %, and holds that until it ends.

    Returns:
        whether it does. Not where an environment variable of glibc's says what to do, nor where
        glibc refuses, as before 2.35.
    """
    if sys.platform != "linux" or any(n in os.environ for n in (*_OPTIONS, "GLIBC_TUNABLES")):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*option) for option in _OPTIONS.values())
