"""Memory that was freed: kept for the next step, and given back where it is more than that."""

import mmap
import sys

import psutil
import pytest
import torch

from gradfiltering.runs.memory import limit_freed_memory, return_freed_memory

MIB = 1 << 20

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="settings of glibc")


def make_gaps():
    """Free every other of many buffers of the heap, so that what is freed is not at its end."""
    buffers = [torch.ones(MIB // 40) for _ in range(1200)]  # of 100 KiB each, 117 MiB
    del buffers[::2]
    return buffers


def test_gaps_in_the_heap_are_given_back_where_they_are_too_many():
    kept_buffers = make_gaps()
    before = psutil.Process().memory_info().rss
    assert not limit_freed_memory(1 << 40), "so much is not freed"
    assert limit_freed_memory(20 * MIB)
    assert before - psutil.Process().memory_info().rss > 40 * MIB
    assert all(bool((buffer == 1).all()) for buffer in kept_buffers)


def test_what_is_not_the_heaps_is_not_taken_for_freed():
    """Python's objects and mapped memory stay with the process; they must not set off one return after another."""
    mapped = mmap.mmap(-1, 200 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for start in range(0, len(mapped), mmap.PAGESIZE):
        mapped[start] = 1
    assert return_freed_memory()
    assert not limit_freed_memory(20 * MIB)
    kept_buffers = make_gaps()
    assert limit_freed_memory(20 * MIB) and len(kept_buffers) == 600
    mapped.close()
