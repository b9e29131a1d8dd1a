"""Large arrays that lie in files: the same numbers, in a process that does not hold them."""

import gc
import pickle
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from gradfiltering.runs.mapped_arrays import LEAST_MAPPED_BYTES, map_large_array

MIB = 1 << 20


def count_mapped_bytes() -> int:
    """Count the bytes of deleted files that are mapped into this process."""
    lines = Path("/proc/self/maps").read_text("utf-8").splitlines()
    addresses = [line.split()[0].split("-") for line in lines if line.endswith("(deleted)")]
    return sum(int(end, 16) - int(start, 16) for start, end in addresses)


@pytest.mark.parametrize("dtype", ["i4", "i8", "f4", "?"])
@pytest.mark.parametrize("shape", [(LEAST_MAPPED_BYTES + 1,), (2, LEAST_MAPPED_BYTES), (0,), (3,)])
def test_numbers_type_and_shape_are_the_same(shape, dtype):
    numbers = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    mapped = map_large_array(numbers)
    assert type(mapped) is np.ndarray and mapped.dtype == dtype and mapped.shape == shape
    np.testing.assert_array_equal(mapped, numbers)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(mapped)), numbers)


def test_rows_that_are_not_contiguous_keep_their_order():
    numbers = np.arange(2 * MIB).reshape(MIB, 2)
    np.testing.assert_array_equal(map_large_array(numbers.T), numbers.T)
    np.testing.assert_array_equal(map_large_array(numbers[::-1]), numbers[::-1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="maps are read from /proc")
def test_a_large_array_lies_in_a_file_that_goes_with_it():
    gc.collect()  # arrays of earlier tests
    before = count_mapped_bytes()
    mapped = map_large_array(np.arange(4 * MIB))
    assert count_mapped_bytes() - before == mapped.nbytes == 32 * MIB
    part = mapped[5:10]
    del mapped
    gc.collect()
    assert part.tolist() == [5, 6, 7, 8, 9] and count_mapped_bytes() - before == 32 * MIB
    del part
    gc.collect()
    assert count_mapped_bytes() == before


def test_a_small_array_is_returned_as_it_is():
    numbers = np.arange(LEAST_MAPPED_BYTES // 8 - 1)
    assert map_large_array(numbers) is numbers


def test_changes_reach_nobody_else():
    numbers = np.zeros(MIB)
    mapped = map_large_array(numbers)
    mapped[3] = 1.0
    assert mapped[3] == 1.0 and numbers[3] == 0.0


def test_an_array_stays_in_memory_where_no_file_can_be_written(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(Path(tmp_path) / "missing"))
    numbers = np.arange(MIB)
    assert map_large_array(numbers) is numbers
