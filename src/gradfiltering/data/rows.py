"""Rows of a text format, kept on disk as the JSON they came as, so that every field stays what the file said."""

import bisect
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from datasets import Dataset

RECORD = "__record__"  # the column of JSON text; no column of a user's typed table is called so
LINE = "__line__"
READ_AT_ONCE = 1000  # rows

Kinds = dict[str, dict[str, int]]


@dataclass(frozen=True)
class JsonRows:
    """Records in an Arrow table of one JSON text a row, memory-mapped where it comes from a file.

    A typed table would have to choose one type per column: numbers would become floats, absent fields null, dates
    timestamps, and half of a surrogate pair could not be stored at all.

    Attributes:
        table: N rows with the column `RECORD` (ASCII, so that it holds any string) and, from a file, `LINE`.
        kinds: for every field that some row of the whole file has, in order of appearance, the first row of each type.
        files: name and first row of each file, for messages; empty for rows that come from none.
    """

    table: Dataset
    kinds: Kinds
    files: tuple[tuple[str, int], ...] = ()

    @classmethod
    def from_list(cls, rows: Sequence[Mapping[str, Any]]) -> "JsonRows":
        """Rows held in memory."""
        kinds: Kinds = {}
        for position, row in enumerate(rows):
            note_kinds(kinds, row, position)
        return cls(Dataset(pa.table({RECORD: pa.array([json.dumps(row) for row in rows], pa.large_string())})), kinds)

    @property
    def column_names(self) -> list[str]:
        """Every field that some row has."""
        return list(self.kinds)

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self), READ_AT_ONCE):
            yield from rows_of(self.table[start : start + READ_AT_ONCE])

    def __getitem__(self, index: int | str) -> Any:
        """The row at a position, or a column as a list (None where a row lacks it)."""
        if isinstance(index, str):
            return [row.get(index) for row in self]
        return json.loads(self.table[index][RECORD])

    def to_list(self) -> list[dict[str, Any]]:
        """All rows at once."""
        return list(self)

    def select(self, positions: Iterable[int]) -> "JsonRows":
        """The rows at these positions, in their order."""
        return replace(self, table=self.table.select(positions))

    def place(self, position: int) -> str:
        """File, line and row (counted from 0) of a row of whole files, in words."""
        if not self.files:
            return f"row {position}"
        name, first = self.files[bisect.bisect_right([start for _, start in self.files], position) - 1]
        line = self.table[position][LINE]
        return f"{name}, " + (f"line {line}, " if line else "") + f"row {position - first}"


def note_kinds(kinds: Kinds, row: Mapping[str, Any], position: int) -> None:
    """Notes the first row in which a field holds a value of a type."""
    for name, value in row.items():
        kinds.setdefault(name, {}).setdefault(type(value).__name__, position)


def rows_of(batch: Mapping[str, list]) -> list[dict[str, Any]]:
    """The rows of a batch of columns, be it JSON text or columns of a typed table."""
    if RECORD in batch:
        return [json.loads(text) for text in batch[RECORD]]
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
