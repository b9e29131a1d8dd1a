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

RECORD_COLUMN = "__record__"  # the column of JSON text; no column of a user's typed table is called so
LINE_COLUMN = "__line__"
READ_AT_ONCE = 1000  # rows

ValueTypes = dict[str, dict[str, int]]
TYPES_WITHOUT_JSON = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_fixed_size_binary,
    pa.types.is_binary_view,
    pa.types.is_duration,
    pa.types.is_interval,
)


@dataclass(frozen=True)
class JsonRows:
    """Rows in an Arrow table of one JSON text a row, memory-mapped where it comes from a file.

    A typed table would have to choose one type per column: numbers would become floats, absent fields null, dates
    timestamps, and half of a surrogate pair could not be stored at all.

    Attributes:
        table: N rows with the column `RECORD_COLUMN` (ASCII, so that it holds any string) and, from a file,
            `LINE_COLUMN`.
        kinds: for every field that some row of the whole file has, in order of appearance, the first row of each type.
        files: name and first row of each file, for messages; empty for rows that come from none.
    """

    table: Dataset
    kinds: ValueTypes
    files: tuple[tuple[str, int], ...] = ()

    @classmethod
    def from_list(cls, all_rows: Sequence[Mapping[str, Any]]) -> "JsonRows":
        """Rows held in memory."""
        value_types: ValueTypes = {}
        for row_position, row_values in enumerate(all_rows):
            note_value_types(value_types, row_values, row_position)
        return cls(
            Dataset(
                pa.table({RECORD_COLUMN: pa.array([to_json(row_values) for row_values in all_rows], pa.large_string())})
            ),
            value_types,
        )

    @property
    def column_names(self) -> list[str]:
        """Every field that some row has."""
        return list(self.kinds)

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for first_position in range(0, len(self), READ_AT_ONCE):
            yield from rows_from_columns(self.table[first_position : first_position + READ_AT_ONCE])

    def __getitem__(self, index: int | str) -> Any:
        """The row at a position, or a column as a list (None where a row lacks it)."""
        if isinstance(index, str):
            return [row_values.get(index) for row_values in self]
        return json.loads(self.table[index][RECORD_COLUMN])

    def to_list(self) -> list[dict[str, Any]]:
        """All rows at once."""
        return list(self)

    def select(self, positions: Iterable[int]) -> "JsonRows":
        """The rows at these positions, in their order."""
        return replace(self, table=self.table.select(positions))

    def describe_row(self, row_position: int) -> str:
        """File, line and row (counted from 0) of a row of whole files, in words."""
        if not self.files:
            return f"row {row_position}"
        file_name, first_position = self.files[
            bisect.bisect_right([first_position for _, first_position in self.files], row_position) - 1
        ]
        line_number = self.table[row_position][LINE_COLUMN]
        return (
            f"{file_name}, " + (f"line {line_number}, " if line_number else "") + f"row {row_position - first_position}"
        )


def to_json(row_values: Mapping[str, Any], ascii_only: bool = True) -> str:
    """A row as one line of JSON, the one rule for what JSON has no type for.

    Dates and times become text in ISO 8601, decimals the text of their digits; a number that is not finite becomes
    null. Columns of other types (bytes, durations) are left out of JSON, see `columns_json_lacks`.
    """
    try:
        return json.dumps(row_values, ensure_ascii=ascii_only, allow_nan=False, default=_as_text)
    except ValueError:
        return json.dumps(_finite(row_values), ensure_ascii=ascii_only, allow_nan=False)


def columns_json_lacks(schema: pa.Schema) -> dict[str, str]:
    """Find the columns that `to_json` cannot write: name -> type in words."""
    types = {column.name: _type_json_lacks(column.type) for column in schema}
    return {name: str(arrow_type) for name, arrow_type in types.items() if arrow_type is not None}


def _type_json_lacks(arrow_type: pa.DataType) -> pa.DataType | None:
    """The type, or a type inside it, that JSON has no place for."""
    if isinstance(arrow_type, pa.BaseExtensionType):
        return _type_json_lacks(arrow_type.storage_type)
    inner_types = [arrow_type.field(index).type for index in range(arrow_type.num_fields)]
    if pa.types.is_dictionary(arrow_type):
        inner_types.append(arrow_type.value_type)
    if any(is_such_type(arrow_type) for is_such_type in TYPES_WITHOUT_JSON):
        return arrow_type
    unsupported_types = map(_type_json_lacks, inner_types)
    return next((inner_type for inner_type in unsupported_types if inner_type is not None), None)


def _as_text(cell_value: Any) -> str:
    if isinstance(cell_value, date | time):
        return cell_value.isoformat()
    if isinstance(cell_value, Decimal):
        return str(cell_value)
    raise TypeError(f"{type(cell_value).__name__} passed the check of column types")


def _finite(cell_value: Any) -> Any:
    """A copy in which null stands for every number that is not finite."""
    if isinstance(cell_value, Mapping):
        return {entry_key: _finite(nested_value) for entry_key, nested_value in cell_value.items()}
    if isinstance(cell_value, list | tuple):
        return [_finite(nested_value) for nested_value in cell_value]
    if isinstance(cell_value, float):
        return cell_value if math.isfinite(cell_value) else None
    return _as_text(cell_value) if isinstance(cell_value, date | time | Decimal) else cell_value


def note_value_types(value_types: ValueTypes, row_values: Mapping[str, Any], row_position: int) -> None:
    """Note the first row in which a field holds a value of a type."""
    for column_name, cell_value in row_values.items():
        value_types.setdefault(column_name, {}).setdefault(type(cell_value).__name__, row_position)


def rows_from_columns(column_batch: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """The rows of a batch of columns, be it JSON text or columns of a typed table."""
    if RECORD_COLUMN in column_batch:
        return [json.loads(json_text) for json_text in column_batch[RECORD_COLUMN]]
    return [
        dict(zip(column_batch, column_values, strict=True))
        for column_values in zip(*column_batch.values(), strict=True)
    ]


def iterate_json_rows(dataset_rows: Dataset | JsonRows) -> Iterator[dict[str, Any]]:
    """Yield rows with the values that `to_json` can write, and no other columns."""
    if isinstance(dataset_rows, JsonRows):
        yield from dataset_rows
        return
    json_lacks = columns_json_lacks(dataset_rows.features.arrow_schema)
    column_names = [name for name in dataset_rows.column_names if name not in json_lacks]
    if not column_names:
        yield from ({} for _ in range(len(dataset_rows)))
        return
    for batch in dataset_rows.with_format("arrow").select_columns(column_names).iter(READ_AT_ONCE):
        yield from rows_from_columns({name: batch[name].to_pylist() for name in column_names})


def row_at(dataset_rows: Dataset | JsonRows, row_id: int) -> dict[str, Any]:
    """The row at a position, as `iterate_json_rows` gives it."""
    return next(iterate_json_rows(dataset_rows.select([row_id])))
