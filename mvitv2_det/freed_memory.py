"""Memory that is freed is kept for the next pass, by the C library of Linux."""

import ctypes
import os
import sys

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt(3)
_LARGEST_BUFFER, _ALL = 2**30, 2**31 - 1  # bytes
_OF_THE_USER = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Has this process keep memory that it frees, where its C library is glibc.

    By default glibc gives large buffers back to the system, and the next pass waits until it has
    zeroed them again, page by page. On a CPU that is a tenth of the backbone's inference, an
    eighth of a detector's, and more of Detectron2's MViT, which needs more memory. What a process
    needs at most stays the same to 2 %; it holds that until it ends.

    Returns:
        whether it does. Not where an environment variable of glibc's says what to do.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _OF_THE_USER):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(
        [mallopt(_MMAP_THRESHOLD, _LARGEST_BUFFER), mallopt(_TRIM_THRESHOLD, _ALL)]
    )
