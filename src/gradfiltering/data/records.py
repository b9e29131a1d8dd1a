"""Rows as they came in, and what is known about them."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from gradfiltering.data.prompts import Turn
from gradfiltering.errors import UserError
from gradfiltering.store import atomic_path

HASHED_AT_ONCE = 1000  # rows


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold an Alpaca-schema record; a dataset may lack the `input` column."""

    instruction: str
    input: str
    output: str

    @property
    def prompt(self) -> tuple[str, str]:
        """The columns a prompt is made of."""
        return (self.instruction, self.input)

    def turn(self, row: dict) -> Turn:
        """The record in `row`; a missing or null input is an empty one."""
        return Turn(row[self.instruction] or "", row.get(self.input) or "", row[self.output] or "")

    def check(self, rows: Dataset, origin: str) -> None:
        """Refuses rows that are not of this schema.

        Raises:
            UserError: no rows, a required column is missing, or a column does not hold text.
        """
        if len(rows) == 0:
            raise UserError(f"{origin} holds no rows; give a file with at least one record")
        for name in (self.instruction, self.output):
            if name not in rows.column_names:
                raise UserError(
                    f"{origin} has no column '{name}' (it has: {', '.join(rows.column_names)}); "
                    "name the columns with data.columns.instruction=, data.columns.input=, data.columns.output="
                )
        for name in (self.instruction, self.input, self.output):
            if name in rows.column_names:
                kind = rows.features[name]
                if getattr(kind, "dtype", None) not in ("string", "large_string", "null"):
                    values = enumerate(rows[name])
                    row, value = next((row, value) for row, value in values if not isinstance(value, str | None))
                    raise UserError(
                        f"{origin}, row {row}: column '{name}' holds {value!r:.60}, not text; mend the rows or name "
                        "another column with data.columns.instruction=, data.columns.input=, data.columns.output="
                    )


@dataclass(frozen=True)
class Records:
    """The candidate rows of a run and its held-out rows.

    Attributes:
        rows: N rows with every field as it came in; a row's position is its `example_id`.
        heldout: rows kept for evaluation, disjoint from `rows` by position, or None.
        columns: where the record is found in a row.
        kinds: the planted kind of each of the N rows where it is known. Kept apart from the rows: no scorer sees it.
        set_aside: positions in `rows` that are held out from training (listed as unscored).
        template: name of the prompt template.
        origin: the source in words, for messages and provenance.
    """

    rows: Dataset
    heldout: Dataset | None
    columns: Columns
    kinds: list[str] | None
    set_aside: frozenset[int]
    template: str
    origin: str

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sources(self) -> list[str] | None:
        """Where each row says it comes from (its `source` column), None where rows do not say."""
        if "source" not in self.rows.column_names:
            return None
        return [str(name) for name in self.rows["source"]]

    def heldout_turns(self) -> list[Turn] | None:
        """The held-out records, or None where nothing is held out."""
        if self.heldout is None:
            return None
        return [self.columns.turn(row) for row in self.heldout]


def content_hash(rows: Dataset) -> str:
    """Digest of the rows' content and column names, whatever file or cache they were read from."""
    digest = hashlib.sha256()
    for batch in rows.with_format(None).iter(batch_size=HASHED_AT_ONCE):
        digest.update(json.dumps(batch, default=str).encode())
    return digest.hexdigest()[:32]


def write_truth(path: Path, kinds: list[str] | None) -> None:
    """Writes the planted kind of each row (`example_id`, `kind`) where it is known; scorers never read it."""
    if kinds is not None:
        with atomic_path(path) as part:
            pq.write_table(pa.table({"example_id": range(len(kinds)), "kind": kinds}), part)
