"""Rows as they came in, and what is known about them."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from gradfiltering.data.file_formats import Form
from gradfiltering.data.json_rows import READ_AT_ONCE, JsonRows
from gradfiltering.data.schemas import Columns as Columns
from gradfiltering.data.schemas import Messages, Schema
from gradfiltering.errors import UserError
from gradfiltering.models.templates import Turn
from gradfiltering.runs.cache import atomic_path


def check_rows(rows: Dataset | JsonRows, schema: Schema, place: Callable[[int], str]) -> None:
    """Refuses rows that are not of the schema.

    Args:
        rows: all rows of a source.
        schema: what they are to be.
        place: says where a row stands.

    Raises:
        UserError: the first row that does not fit, its field and value.
    """
    for position in _suspects(rows, schema):
        problem = schema.problem(rows[position])
        if problem:
            options = ", ".join(f"data.columns.{name}=" for name in schema.options)
            raise UserError(
                f"{place(position)}: {problem}; mend the rows, or name another column with {options}, or another "
                "schema with data.schema="
            )


def _suspects(rows: Dataset | JsonRows, schema: Schema) -> Iterable[int]:
    """Rows that may not fit: of text fields, what the table knows about types; of conversations, all rows."""
    if isinstance(schema, Messages):
        return range(len(rows))
    if isinstance(rows, JsonRows):
        found = [rows.kinds.get(name, {}) for name in schema.fields]
        return sorted(first for kinds in found for kind, first in kinds.items() if kind not in ("str", "NoneType"))
    present = [name for name in schema.fields if name in rows.column_names]
    text = all(getattr(rows.features[name], "dtype", None) in ("string", "large_string", "null") for name in present)
    return () if text else range(len(rows))


@dataclass(frozen=True)
class InstructionDataset:
    """The candidate rows of a run and its held-out rows.

    Attributes:
        rows: N rows with every field as it came in; a row's position is its `example_id`.
        heldout: rows kept for evaluation, disjoint from `rows` by position, or None.
        schema: where the record is found in a row, and what of it is supervised.
        kinds: the planted kind of each of the N rows where it is known. Kept apart from the rows: no scorer sees it.
        set_aside: positions in `rows` that are held out from training (listed as unscored).
        template: name of the prompt template.
        origin: the source in words, for messages and provenance.
        form: what the rows came in, and the subset is given back in.
    """

    rows: Dataset | JsonRows
    heldout: Dataset | JsonRows | None
    schema: Schema
    kinds: list[str] | None
    set_aside: frozenset[int]
    template: str
    origin: str
    form: Form

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sources(self) -> list[str] | None:
        """Where each row says it comes from (its `source` column), None where rows do not say."""
        if "source" not in self.rows.column_names:
            return None
        return [str(name) for name in self.rows["source"][:]]

    def heldout_turns(self) -> list[Turn] | None:
        """The held-out records with a response, or None where nothing with a question is held out.

        Of a conversation this is the first question and its answer.
        """
        turns = [self.schema.turn(row) for row in self.heldout or ()]
        return [turn for turn in turns if turn is not None and turn.output.strip()] or None


def hash_content(rows: Dataset | JsonRows, names: Sequence[str]) -> str:
    """Digest of some columns' content and names, whatever file or cache the rows were read from."""
    digest = hashlib.sha256()
    for values in _values(rows, names):
        digest.update(json.dumps(values, default=str).encode())
    return hashlib.sha256((json.dumps(list(names)) + digest.hexdigest()).encode()).hexdigest()[:32]


def _values(rows: Dataset | JsonRows, names: Sequence[str]) -> Iterator[list[Any]]:
    """Each row's values of some columns, None where it has no such column."""
    if isinstance(rows, JsonRows):
        yield from ([row.get(name) for name in names] for row in rows)
        return
    present = [name for name in names if name in rows.column_names]  # a column left out is never decoded
    for batch in rows.with_format(None).select_columns(present).iter(READ_AT_ONCE):
        for values in zip(*(batch[name] for name in present), strict=True):
            row = dict(zip(present, values, strict=True))
            yield [row.get(name) for name in names]


def write_truth(path: Path, kinds: list[str] | None) -> None:
    """Writes the planted kind of each row (`example_id`, `kind`) where it is known; scorers never read it."""
    if kinds is not None:
        with atomic_path(path) as part:
            pq.write_table(pa.table({"example_id": range(len(kinds)), "kind": kinds}), part)
