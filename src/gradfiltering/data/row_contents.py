"""Contents of the rows of a dataset: how many are of each schema, and what of them is not read."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from gradfiltering.data.json_rows import READ_AT_ONCE, JsonRows, columns_json_lacks, rows_from_columns
from gradfiltering.data.row_columns import Row
from gradfiltering.data.schemas import NO_SCHEMA, Mixed, Schema, describe_schema

SOURCE_COLUMN = "source"  # read by the diagnostics of sources, and by mixtures
EMPTY_VALUES: tuple[Any, ...] = (None, "", [], {})


@dataclass(frozen=True)
class RowContents:
    """Counts over all rows of a dataset.

    Attributes:
        schemas: schema and its columns in words -> rows of it.
        unused: part of a row that is there and not used (a column, a field of messages) -> rows that have it.
    """

    schemas: Mapping[str, int] = field(default_factory=dict)
    unused: Mapping[str, int] = field(default_factory=dict)

    def describe(self) -> list[str]:
        """Put the counts into lines of words; a single schema needs no count."""
        lines = []
        if len(self.schemas) > 1:
            lines.append("rows by schema: " + ", ".join(f"{name}: {count}" for name, count in self.schemas.items()))
        if self.unused:
            parts = ", ".join(f"{name} ({count} rows)" for name, count in self.unused.items())
            lines.append(f"not used, but given back with the selected rows unless said otherwise: {parts}")
        return lines


def choose_schema(dataset_rows: Dataset | JsonRows, candidates: Sequence[Schema]) -> Schema:
    """Choose the one candidate that all rows have, or `Mixed` over those that some have."""
    if len(candidates) == 1:
        return candidates[0]
    mixed_schema = Mixed(tuple(candidates))
    row_schemas = Counter(mixed_schema.of_row(row) for row in iterate_columns(dataset_rows, mixed_schema.fields))
    used_schemas = tuple(candidate for candidate in candidates if candidate in row_schemas)
    return Mixed(used_schemas) if len(used_schemas) > 1 else (*used_schemas, candidates[0])[0]


def count_contents(
    dataset_rows: Dataset | JsonRows, schema: Schema, left_out: Mapping[str, str] | None = None
) -> RowContents:
    """Count the rows of each schema, and what is in them and not used.

    Args:
        dataset_rows: all rows of a dataset.
        schema: theirs.
        left_out: columns that could not be read, with their types.
    """
    schema_counts: Counter[str] = Counter()
    unused_counts: Counter[str] = Counter()
    ignored_columns = {*schema.fields, SOURCE_COLUMN}
    if isinstance(dataset_rows, JsonRows):
        for json_row in dataset_rows:
            unused_counts.update(
                name for name, value in json_row.items() if name not in ignored_columns and value not in EMPTY_VALUES
            )
            _count_row(json_row, schema, schema_counts, unused_counts)
    else:
        unused_counts.update(_count_columns(dataset_rows, ignored_columns))
        for row_values in iterate_columns(dataset_rows, schema.fields):
            _count_row(row_values, schema, schema_counts, unused_counts)
    lost_columns = {
        f"{name} ({type_name}: cannot be read and is not given back)": len(dataset_rows)
        for name, type_name in (left_out or {}).items()
    }
    return RowContents(dict(schema_counts), {**unused_counts, **lost_columns})


def _count_row(row_values: Row, schema: Schema, schema_counts: Counter[str], unused_counts: Counter[str]) -> None:
    row_schema = schema.of_row(row_values)
    schema_counts[describe_schema(row_schema) if row_schema else NO_SCHEMA] += 1
    unused_counts.update(schema.unused(row_values))


def _count_columns(table: Dataset, ignored_columns: set[str]) -> dict[str, int]:
    """Count the cells of columns that hold anything, without decoding them."""
    column_names = [name for name in table.column_names if name not in ignored_columns]
    counts = dict.fromkeys(column_names, 0)
    if not column_names:
        return {}
    for batch in table.with_format("arrow").select_columns(column_names).iter(READ_AT_ONCE):
        for name in column_names:
            counts[name] += len(batch[name]) - batch[name].null_count
    json_lacks = columns_json_lacks(table.features.arrow_schema)
    labels = {name: f"{name} ({type_name}: not in subset.jsonl)" for name, type_name in json_lacks.items()}
    return {labels.get(name, name): count for name, count in counts.items() if count}


def iterate_columns(dataset_rows: Dataset | JsonRows, column_names: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Yield the rows in order, of a typed table with these columns alone."""
    if isinstance(dataset_rows, JsonRows):
        yield from dataset_rows
        return
    present_columns = [name for name in column_names if name in dataset_rows.column_names]
    for batch in dataset_rows.with_format(None).select_columns(present_columns).iter(READ_AT_ONCE):
        yield from rows_from_columns(batch)
