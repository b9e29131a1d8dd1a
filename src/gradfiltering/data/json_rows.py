"""Rows of a text format, kept on disk as the JSON they came as, so that every field stays what the file said."""

import bisect
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, time
from decimal import Decimal
from typing import Any

import pyarrow as pa
from datasets import Dataset

from gradfiltering.errors import UserError

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
        return cls(Dataset(pa.table({RECORD: pa.array([to_json(row) for row in rows], pa.large_string())})), kinds)

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


def to_json(row: Mapping[str, Any], ascii_only: bool = True) -> str:
    """A row as one line of JSON, the one rule for what JSON has no type for.

    Dates and times become text in ISO 8601, decimals the text of their digits; a number that is not finite becomes
    null. Columns of other types (bytes, durations) are refused when a table is read, see `check_types`.
    """
    try:
        return json.dumps(row, ensure_ascii=ascii_only, allow_nan=False, default=_as_text)
    except ValueError:
        return json.dumps(_finite(row), ensure_ascii=ascii_only, allow_nan=False)


def check_types(schema: pa.Schema, origin: str) -> None:
    """Refuses a table with a column that `to_json` cannot write.

    Raises:
        UserError: the first such column and its type.
    """
    for column in schema:
        kind = _beyond_json(column.type)
        if kind is not None:
            raise UserError(
                f"{origin}: column '{column.name}' holds {kind}, which subset.jsonl cannot hold; drop the column or "
                "cast it to text or numbers"
            )


def _beyond_json(kind: pa.DataType) -> pa.DataType | None:
    """The type, or the one inside it, that JSON has no place for."""
    if isinstance(kind, pa.BaseExtensionType):
        return _beyond_json(kind.storage_type)
    types = pa.types
    inner = [kind.field(number).type for number in range(kind.num_fields)]
    if types.is_dictionary(kind):
        inner.append(kind.value_type)
    binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    if binary or types.is_binary_view(kind) or types.is_duration(kind) or types.is_interval(kind):
        return kind
    return next((found for found in map(_beyond_json, inner) if found is not None), None)


def _as_text(value: Any) -> str:
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"{type(value).__name__} passed the check of column types")


def _finite(value: Any) -> Any:
    """A copy in which null stands for every number that is not finite."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return _as_text(value) if isinstance(value, date | time | Decimal) else value


def note_kinds(kinds: Kinds, row: Mapping[str, Any], position: int) -> None:
    """Notes the first row in which a field holds a value of a type."""
    for name, value in row.items():
        kinds.setdefault(name, {}).setdefault(type(value).__name__, position)


def rows_of(batch: Mapping[str, list]) -> list[dict[str, Any]]:
    """The rows of a batch of columns, be it JSON text or columns of a typed table."""
    if RECORD in batch:
        return [json.loads(text) for text in batch[RECORD]]
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
