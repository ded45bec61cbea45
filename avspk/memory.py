"""The C library's allocator, told to keep what training frees and asks for again a moment later."""

from __future__ import annotations

import ctypes
import sys

# Parameters of mallopt(3) in glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
TOP_PAD = 64 * 2**20
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let large blocks come from the heap and stay there; True where the C library could be told so.

    By default glibc maps every block above some megabytes afresh and returns it at once, so that each activation of a
    CPU training step is paid for in page faults: without them the demo trains a sixth more examples a second. The
    process then holds its peak instead of shrinking between steps.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    return all(mallopt(*setting) for setting in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, TOP_PAD)))
