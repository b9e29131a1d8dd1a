"""Settings of the C library's memory allocator."""

import ctypes
import sys


def keep_freed_memory() -> None:
    """Let glibc keep large freed buffers instead of returning them to the system on each free.

    A training step frees and takes the same buffers again; without this, a CPU step spends much of
    its time in page faults. Does nothing where the C library has no such setting.
    """
    if not sys.platform.startswith("linux"):
        return
    c_library = ctypes.CDLL(None)
    if hasattr(c_library, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3
        c_library.mallopt(mmap_threshold, 1 << 30)
        c_library.mallopt(trim_threshold, (1 << 31) - 1)
