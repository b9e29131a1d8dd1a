"""Rows that repeat earlier rows, in numbers too large for memory: sketches of rows go to disk.

Rows come in batches, in order. Of each row a digest of 16 bytes stays in memory; of rows that may repeat another a few
dozen bytes more.
"""

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradfiltering.data.row_texts import WORD, RowText
from gradfiltering.runs.progress import track

if TYPE_CHECKING:
    from datasketch import MinHash

SHINGLE_WORDS = 3
NEAR_SIMILARITY = 0.8  # Jaccard, of shingles
PERMUTATIONS = 128
# Rows are compared that agree in all numbers of a band. This many bands of this width miss the fewest rows above the
# similarity and compare the fewest below it, as datasketch.MinHashLSH(NEAR_SIMILARITY, PERMUTATIONS) works out.
BANDS, BAND_WIDTH = 9, 13
SKETCHES_FILE, BANDS_FILE = "sketches.bin", "bands.bin"


class ExactDuplicates:
    """Finds the rows whose question and answer an earlier row has."""

    def __init__(self) -> None:
        self._digests: list[NDArray[np.uint64]] = [np.zeros((0, 2), dtype=np.uint64)]  # [B, 2] for each batch

    def add_rows(self, rows: Sequence[RowText]) -> None:
        """Look at the next rows."""
        digests = b"".join(digest_row(row) for row in rows)
        self._digests.append(np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2))

    def find_hits(self) -> NDArray[np.bool_]:
        """Return [N] bool: True for a row that repeats an earlier one."""
        digests = np.concatenate(self._digests)  # [N, 2]
        repeats_earlier: NDArray[np.bool_] = find_first_equal(digests) != np.arange(len(digests))
        return repeats_earlier


def find_first_equal(digests: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return [N]: for each of [N, 2] digests the position of the first that equals it, often its own."""
    row_order = np.lexsort(digests.T)  # equal digests stand together, the earliest first
    starts_group = np.ones(len(digests), dtype=bool)
    starts_group[1:] = (digests[row_order[1:]] != digests[row_order[:-1]]).any(axis=1)
    first_rows = np.empty(len(digests), dtype=np.int64)
    first_rows[row_order] = row_order[starts_group][np.cumsum(starts_group) - 1]
    return first_rows


def digest_row(row: RowText) -> bytes:
    """Return 16 bytes that rows of equal question and answer share."""
    text = f"{len(row.question)} {row.question}{row.answer}"
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class NearDuplicates:
    """Finds the rows that nearly repeat, or repeat, an earlier row that nearly repeats none itself.

    The estimated Jaccard similarity of runs of three words is 0.8 or more (MinHash with banding, Broder 1997).

    Args:
        scratch_folder: sketches are written there, 600 bytes a row, until the caller deletes it.
    """

    def __init__(self, scratch_folder: Path):
        self.sketches_file, self.bands_file = scratch_folder / SKETCHES_FILE, scratch_folder / BANDS_FILE
        self.row_count = 0
        self._empty_sketch = _make_empty_sketch()
        self._band_factors = np.random.default_rng(0).integers(0, 1 << 64, BAND_WIDTH, dtype=np.uint64) | np.uint64(1)

    def add_rows(self, rows: Sequence[RowText]) -> None:
        """Look at the next rows."""
        if not rows:
            return
        sketches = np.stack([self._sketch(row) for row in rows])  # [B, 128]
        bands = sketches[:, : BANDS * BAND_WIDTH].reshape(len(rows), BANDS, BAND_WIDTH).astype(np.uint64)
        band_hashes = (bands * self._band_factors).sum(axis=2, dtype=np.uint64)  # [B, 9], modulo 2 ** 64
        for path, numbers in ((self.sketches_file, sketches), (self.bands_file, band_hashes)):
            with path.open("ab") as file:
                file.write(numbers.tobytes())
        self.row_count += len(rows)

    def find_hits(self) -> NDArray[np.bool_]:
        """Return [N] bool: True for a row that is near to an earlier row that was not near to any."""
        is_near = np.zeros(self.row_count, dtype=bool)
        if not self.row_count:
            return is_near
        sketches = np.memmap(self.sketches_file, np.uint32, "r", shape=(self.row_count, PERMUTATIONS))
        band_hashes = np.memmap(self.bands_file, np.uint64, "r", shape=(self.row_count, BANDS))
        band_groups = BandGroups(band_hashes)
        for row_id, group_ids in track(band_groups, "looking for near duplicates", total=band_groups.row_count):
            earlier_rows = band_groups.find_members(group_ids)
            similarities = (sketches[earlier_rows] == sketches[row_id]).mean(axis=1)
            if (similarities >= NEAR_SIMILARITY).any():
                is_near[row_id] = True
            else:
                band_groups.add_member(row_id, group_ids)
        return is_near

    def _sketch(self, row: RowText) -> NDArray[np.uint32]:
        """Return the [128] numbers of a row's MinHash."""
        row_words = WORD.findall(f"{row.question} {row.answer}".lower())
        starts = range(max(1, len(row_words) - SHINGLE_WORDS + 1))
        shingles = {" ".join(row_words[start : start + SHINGLE_WORDS]).encode() for start in starts}
        sketch = self._empty_sketch.copy()
        sketch.update_batch(list(shingles))
        return np.asarray(sketch.hashvalues, dtype=np.uint32)


def _make_empty_sketch() -> "MinHash":
    from datasketch import MinHash

    return MinHash(num_perm=PERMUTATIONS, hashfunc=zlib.crc32)


class BandGroups:
    """Groups of rows that agree in a band, of which some rows become members.

    Rows that agree with no other in any band are in no group and take no memory. Iterating yields, in ascending order,
    each row that is in a group, with the [G] groups it is in.

    Args:
        band_hashes: [N, 9] uint64, equal where rows agree in a band.
    """

    def __init__(self, band_hashes: NDArray[np.uint64]):
        rows_of_bands: list[NDArray[np.int32]] = []
        groups_of_bands: list[NDArray[np.int32]] = []
        sizes_of_bands: list[NDArray[np.int32]] = []
        group_count = 0
        for band in range(band_hashes.shape[1]):
            rows, groups, sizes = _group_equal(band_hashes[:, band])
            rows_of_bands.append(rows)
            groups_of_bands.append(groups + np.int32(group_count))
            sizes_of_bands.append(sizes)
            group_count += len(sizes)
        rows, groups, sizes = map(np.concatenate, (rows_of_bands, groups_of_bands, sizes_of_bands))
        row_order = np.argsort(rows, kind="stable")
        self._groups = groups[row_order]  # [P], those of the first row, of the second, ...
        self._row_ids, self._first_groups = np.unique(rows[row_order], return_index=True)
        self._members = np.zeros(len(rows), dtype=np.int32)  # [P], room for all rows of the first group, ...
        self._first_members = np.cumsum(sizes) - sizes
        self._member_counts = np.zeros_like(sizes)

    @property
    def row_count(self) -> int:
        """Rows that are in a group."""
        return len(self._row_ids)

    def __iter__(self) -> Iterator[tuple[int, NDArray[np.int32]]]:
        ends = [*self._first_groups[1:].tolist(), len(self._groups)][: self.row_count]  # none where no rows agree
        for row_id, first, end in zip(self._row_ids, self._first_groups, ends, strict=True):
            yield int(row_id), self._groups[first:end]

    def find_members(self, group_ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the members of some groups, each once, ascending."""
        firsts, counts = self._first_members[group_ids], self._member_counts[group_ids]
        return np.unique(
            np.concatenate([self._members[first : first + count] for first, count in zip(firsts, counts, strict=True)])
        )

    def add_member(self, row_id: int, group_ids: NDArray[np.int32]) -> None:
        """Make a row a member of all groups that it is in."""
        self._members[self._first_members[group_ids] + self._member_counts[group_ids]] = row_id
        self._member_counts[group_ids] += 1


def _group_equal(
    hashes: NDArray[np.uint64],
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Return rows that equal another row, the group that each is in, and the rows of each group."""
    _, groups, sizes = np.unique(hashes, return_inverse=True, return_counts=True)
    is_shared = sizes > 1
    rows = np.flatnonzero(is_shared[groups])
    shared_groups = np.cumsum(is_shared) - 1  # numbers of the groups with several rows
    return (
        rows.astype(np.int32),
        shared_groups[groups[rows]].astype(np.int32),
        sizes[is_shared].astype(np.int32),
    )
