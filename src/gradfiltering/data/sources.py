"""Where rows come from: the bundled tasks, a file, the hub. One class per option of the `data` group."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import datasets
from datasets import Dataset, load_dataset

from gradfiltering.data import tasks
from gradfiltering.data.corrupt import Corruption
from gradfiltering.data.records import Columns, Records
from gradfiltering.errors import UserError
from gradfiltering.seeding import derive_seed, numpy_rng


class Source(Protocol):
    """A dataset the pipeline can start from."""

    def load(self, seed: int) -> Records:
        """Reads the rows; the same seed gives the same rows."""


@dataclass(frozen=True)
class Heldout:
    """Which rows are kept for evaluation.

    Attributes:
        path: a file of held-out rows in the same schema, or None.
        rows: how many to take from the rows that follow `data.limit` (none of the pool is used for it).
        share: share of the pool to set aside instead; those rows are listed in `unscored.parquet`.
    """

    path: str | None
    rows: int
    share: float

    def __post_init__(self):
        if self.rows < 0:
            raise UserError(f"data.heldout.rows={self.rows}: give a number of rows, 0 for none")
        if not 0 <= self.share < 1:
            raise UserError(f"data.heldout.share={self.share}: give a share in [0, 1)")


@dataclass(frozen=True)
class TaskSource:
    """The bundled generator: skill families with planted defects and a known truth."""

    rows: int
    heldout_rows: int
    limit: int | None
    template: str
    columns: Columns
    corrupt: Corruption

    def load(self, seed: int) -> Records:
        """Generates training rows (with planted kinds) and clean held-out rows."""
        count = _limited(self.rows, self.limit)
        origin = f"bundled tasks ({count} rows, seed {seed})"
        clean = tasks.generate_rows(self.rows, seed, "train")[:count]
        self.columns.check(Dataset.from_list(clean), origin)
        rows, kinds = self.corrupt.plant(
            clean, derive_seed(seed, "corrupt"), self.columns.prompt, self.columns.output, tasks.wrong_answer
        )
        heldout = tasks.generate_rows(self.heldout_rows, seed, "heldout") if self.heldout_rows else None
        return Records(
            rows=Dataset.from_list(rows),
            heldout=Dataset.from_list(heldout) if heldout else None,
            columns=self.columns,
            kinds=kinds,
            set_aside=frozenset(),
            template=self.template,
            origin=origin,
        )


@dataclass(frozen=True)
class FileSource:
    """A json or jsonl file in the Alpaca schema."""

    path: str
    limit: int | None
    template: str
    columns: Columns
    heldout: Heldout
    corrupt: Corruption

    def load(self, seed: int) -> Records:
        """Reads the file."""
        return _records(read_file(self.path), self.path, self, seed)


@dataclass(frozen=True)
class HubSource:
    """A dataset of the Hugging Face hub in the Alpaca schema, or its local copy when `path` is given."""

    name: str
    config: str | None
    split: str
    path: str | None
    limit: int | None
    template: str
    columns: Columns
    heldout: Heldout
    corrupt: Corruption

    def load(self, seed: int) -> Records:
        """Reads `path` if given, else downloads (or finds in the cache) the named dataset.

        Raises:
            UserError: the dataset cannot be reached or does not exist.
        """
        if self.path is not None:
            return _records(read_file(self.path), self.path, self, seed)
        origin = f"hub dataset {self.name} [{self.split}]"
        try:
            rows = load_dataset(self.name, self.config, split=self.split)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise UserError(
                f"cannot load {origin}: {error}. Check the name and the connection, "
                "or give a local copy with data.path=FILE"
            ) from error
        return _records(rows, origin, self, seed)


def read_file(path: str) -> Dataset:
    """Reads a json array or a jsonl file; every value stays what the file says it is (a date stays text).

    Raises:
        UserError: the file is missing, of another type, or not readable as JSON records.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(
            f"no such file: {path} (looked in {file.absolute().parent}); set data.path= to a json or jsonl file"
        )
    if file.suffix not in (".json", ".jsonl"):
        raise UserError(f"{path}: cannot read '{file.suffix}' files; give .json (an array of records) or .jsonl")
    rows = _parse(file, path)
    if not rows:
        raise UserError(f"{path} is empty; give a file with at least one record")
    for position, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"{path}, row {position}: {row!r:.60} is no record; give objects with named fields")
    names = dict.fromkeys(name for row in rows for name in row)
    try:
        columns = {name: [row.get(name) for row in rows] for name in names}
        return Dataset.from_dict(columns, on_mixed_types="use_json")
    except (ValueError, OverflowError) as error:
        raise UserError(f"{path}: a value fits no table: {error}. Mend or remove that field") from error


def _parse(file: Path, path: str) -> list[Any]:
    """The records of a json array, of json lines, or of a single object; blank lines count for nothing."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error}. Convert it, for example with iconv") from error
    if file.suffix == ".json":
        try:
            whole = json.loads(text)
            return whole if isinstance(whole, list) else [whole]
        except json.JSONDecodeError as error:
            if not text.lstrip().startswith("{"):  # else perhaps json lines under the other suffix
                raise UserError(f"{path} is not valid JSON records: {error}. Mend it or convert it to jsonl") from error
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path}, line {number}, is not valid JSON: {error.msg} at column {error.colno}. Mend the line; "
                    "jsonl wants one record a line"
                ) from error
    return rows


def _limited(count: int, limit: int | None) -> int:
    if limit is not None and limit < 1:
        raise UserError(f"data.limit={limit}: give a positive number of rows, or null for all")
    return count if limit is None else min(count, limit)


def _records(rows: Dataset, origin: str, source: Any, seed: int) -> Records:
    """Cuts a loaded dataset into pool and held-out rows and plants what `data.corrupt` asks for."""
    columns: Columns = source.columns
    columns.check(rows, origin)
    size = _limited(len(rows), source.limit)
    pool = rows.select(range(size))
    heldout, set_aside = _hold_out(rows, pool, source, seed)
    kinds = None
    if source.corrupt.active:
        pool, kinds = _plant(pool, set_aside, source, seed)
    return Records(pool, heldout, columns, kinds, set_aside, source.template, origin)


def _plant(pool: Dataset, set_aside: frozenset[int], source: Any, seed: int) -> tuple[Dataset, list[str]]:
    """Plants defects into the rows that are trained on; held-out rows stay clean and are copied nowhere."""
    rows = pool.to_list()
    trained = [position for position in range(len(rows)) if position not in set_aside]
    planted, found = source.corrupt.plant(
        [rows[position] for position in trained],
        derive_seed(seed, "corrupt"),
        source.columns.prompt,
        source.columns.output,
        None,
    )
    kinds = ["clean"] * len(rows)
    for position, row, kind in zip(trained, planted, found, strict=True):
        rows[position], kinds[position] = row, kind
    return Dataset.from_list(rows, features=pool.features), kinds


def _hold_out(rows: Dataset, pool: Dataset, source: Any, seed: int) -> tuple[Dataset | None, frozenset[int]]:
    held: Heldout = source.heldout
    if held.path is not None:
        heldout = read_file(held.path)
        source.columns.check(heldout, held.path)
        return heldout, frozenset()
    if held.share:
        count = round(held.share * len(pool))
        if count == 0:
            raise UserError(f"data.heldout.share={held.share} of {len(pool)} rows is no row; give a larger share or 0")
        chosen = sorted(numpy_rng(seed, "heldout").choice(len(pool), size=count, replace=False).tolist())
        return pool.select(chosen), frozenset(chosen)
    spare: Sequence[int] = range(len(pool), min(len(rows), len(pool) + held.rows))
    return (rows.select(spare), frozenset()) if len(spare) else (None, frozenset())
