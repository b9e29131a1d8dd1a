"""Settings of the C library's memory allocator, and of what libraries keep beside tensors."""

import ctypes
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

KEPT_PROGRAMS = 64  # products that oneDNN keeps compiled; it keeps 1,024 unless told, each with memory to work in
MOST_FREED_BYTES = 1400 << 20  # that stay with the process: as much as the largest chunk that pays takes, and a bit


class _HeapUse(ctypes.Structure):
    """The sizes that glibc's `mallinfo2` returns, in bytes."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


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


def limit_kept_programs() -> None:
    """Let oneDNN keep fewer compiled products, before it computes the first of them.

    Batches come in many shapes, and each shape of a layer is a program more, which takes half a megabyte and up; those
    of one batch, which all layers share, are enough.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KEPT_PROGRAMS))


def return_freed_memory() -> bool:
    """Give all freed memory back to the system, wherever in the heap it lies.

    Returns:
        True where the C library can.
    """
    heap = _find_heap()
    if heap is None:
        return False
    heap.give_back()
    return True


def limit_freed_memory(most_freed_bytes: int = MOST_FREED_BYTES) -> bool:
    """Give freed memory back where more of it stays with the process than the next step will need.

    Chunks of changing shapes leave gaps in the heap that later ones do not fit into.

    Args:
        most_freed_bytes: that may stay.

    Returns:
        True where memory was given back.
    """
    heap = _find_heap()
    return heap is not None and heap.count_freed_bytes() > most_freed_bytes and return_freed_memory()


def return_freed_buffers() -> None:
    """Give back to the system what Arrow's allocator keeps of freed buffers; it is another one than the C library's.

    Each parquet file that is written or read would leave some of it, up to several times the file's rows.
    """
    import pyarrow

    pyarrow.default_memory_pool().release_unused()


class _Heap:
    """The C library's heap.

    Attributes:
        outside_bytes: of the process's own memory that are not the heap's, such as those of Python's objects and of
            threads: what was left when all that is free in the heap had last been given back.
    """

    def __init__(self, c_library: Any):
        self._c_library = c_library
        self._c_library.mallinfo2.restype = _HeapUse
        self.outside_bytes = 0

    def give_back(self) -> None:
        """Give back what is free."""
        self._c_library.malloc_trim(0)
        self.outside_bytes = self._count_unused_bytes()

    def count_freed_bytes(self) -> int:
        """Return the freed bytes of the heap that are still in memory."""
        return self._count_unused_bytes() - self.outside_bytes

    def _count_unused_bytes(self) -> int:
        """Return the bytes of the process's own memory that the heap has not handed out."""
        heap_use = self._c_library.mallinfo2()
        statistics = Path("/proc/self/statm").read_text("ascii").split()
        resident_pages, shared_pages = (int(pages) for pages in statistics[1:3])
        private_bytes = (resident_pages - shared_pages) * os.sysconf("SC_PAGE_SIZE")
        return private_bytes - int(heap_use.uordblks) - int(heap_use.hblkhd)


@cache
def _find_heap() -> _Heap | None:
    """Return the C library's heap where the library tells what it holds and gives it back; else None."""
    if not sys.platform.startswith("linux"):
        return None
    c_library = ctypes.CDLL(None)
    if not hasattr(c_library, "mallinfo2") or not hasattr(c_library, "malloc_trim"):
        return None
    return _Heap(c_library)
