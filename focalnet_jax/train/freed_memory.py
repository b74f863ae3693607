"""Memory that a training step frees is kept for the next one.

XLA on CPUs takes memory from the C library. By default glibc gives large blocks back to
the system as soon as they are freed. Then each step maps its memory anew, and the system
fills it with zeros, page by page.
"""

import ctypes
import os

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8


def keep_freed_memory() -> bool:
    """Has glibc keep what is freed in this process, and take new memory from that first.

    It is the same as `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1 MALLOC_ARENA_MAX=1` in
    the environment of a program. The process then stays as large as it has ever been.

    Returns:
      Whether the C library is glibc. With any other nothing is done.
    """
    try:
        if not os.confstr("CS_GNU_LIBC_VERSION"):
            return False
    except (AttributeError, ValueError, OSError):  # not a Unix, or another C library
        return False
    library = ctypes.CDLL(None)
    # What lies free in one arena, a pool of memory, can't serve threads that use another.
    library.mallopt(_M_ARENA_MAX, 1)
    library.mallopt(_M_MMAP_MAX, 0)
    library.mallopt(_M_TRIM_THRESHOLD, -1)
    return True
