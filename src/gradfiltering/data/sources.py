"""Where rows come from: the bundled tasks, a file, the hub. One class per option of the `data` group."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import datasets
from datasets import Dataset, load_dataset

from gradfiltering.data.dataset import InstructionDataset, check_rows
from gradfiltering.data.file_formats import JSON_LINES
from gradfiltering.data.json_rows import JsonRows, check_column_types
from gradfiltering.data.loading import LoadedRows, load
from gradfiltering.data.schemas import Columns, Instruction, Messages, Schema, detect
from gradfiltering.errors import UserError
from gradfiltering.seeding import derive_seed, numpy_rng
from gradfiltering.synthetic import task_generator as tasks
from gradfiltering.synthetic.planted_defects import PlantedDefects


class Source(Protocol):
    """A dataset the pipeline can start from."""

    def load(self, seed: int) -> InstructionDataset:
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
    corrupt: PlantedDefects

    def load(self, seed: int) -> InstructionDataset:
        """Generates training rows (with planted kinds) and clean held-out rows."""
        count = _limited(self.rows, self.limit)
        origin = f"bundled tasks ({count} rows, seed {seed})"
        clean = tasks.generate_rows(self.rows, seed, "train")[:count]
        if not clean:
            raise UserError(f"{origin} holds no rows; set data.rows= to a positive number")
        schema = detect(list(clean[0]), self.columns, "alpaca", origin)
        assert isinstance(schema, Instruction)
        rows, kinds = self.corrupt.plant(
            clean, derive_seed(seed, "corrupt"), schema.prompt, schema.output, tasks.wrong_answer
        )
        heldout = tasks.generate_rows(self.heldout_rows, seed, "heldout") if self.heldout_rows else None
        return InstructionDataset(
            rows=Dataset.from_list(rows),
            heldout=Dataset.from_list(heldout) if heldout else None,
            schema=schema,
            kinds=kinds,
            set_aside=frozenset(),
            template=self.template,
            origin=origin,
            form=JSON_LINES,
        )


@dataclass(frozen=True, kw_only=True)
class LoadedSource:
    """What the sources that load a user's rows share.

    Attributes:
        limit: only the first so many rows, None for all.
        template: name of the prompt template.
        schema: one of `SCHEMAS`.
        columns: names of the columns that hold a record.
        heldout: which rows are kept for evaluation.
        corrupt: which defects are planted.
    """

    limit: int | None
    template: str
    schema: str
    columns: Columns
    heldout: Heldout
    corrupt: PlantedDefects

    def __post_init__(self) -> None:
        _limited(0, self.limit)

    @property
    def first(self) -> int | None:
        """How many rows of the source are needed, held-out ones included, None for all."""
        if self.limit is None:
            return None
        # Held-out rows from a file of their own, or a share of the pool, need none beyond the limit.
        return self.limit + (0 if self.heldout.path is not None or self.heldout.share else self.heldout.rows)

    def schema_of(self, loaded: LoadedRows) -> Schema:
        """The schema of all rows of a source, each of which was looked at.

        Raises:
            UserError: the columns fit no schema, or a row does not fit its own.
        """
        schema = detect(loaded.rows.column_names, self.columns, self.schema, loaded.origin)
        check_rows(loaded.rows, schema, loaded.describe_row)
        return schema

    def records(self, loaded: LoadedRows, seed: int) -> InstructionDataset:
        """Cuts loaded rows into pool and held-out rows and plants what `data.corrupt` asks for."""
        schema = self.schema_of(loaded)
        rows = loaded.rows
        pool = rows.select(range(_limited(len(rows), self.limit)))
        heldout, set_aside = self._hold_out(rows, pool, schema, seed)
        kinds = None
        if self.corrupt.any_planted:
            pool, kinds = _plant(pool, set_aside, self.corrupt, schema, seed)
        # A conversation has a layout of its own, whatever the template of single questions.
        template = "conversation" if isinstance(schema, Messages) else self.template
        return InstructionDataset(pool, heldout, schema, kinds, set_aside, template, loaded.origin, loaded.form)

    def _hold_out(
        self, rows: Dataset | JsonRows, pool: Dataset | JsonRows, schema: Schema, seed: int
    ) -> tuple[Dataset | JsonRows | None, frozenset[int]]:
        held = self.heldout
        if held.path is not None:
            loaded = load(held.path)
            found = self.schema_of(loaded)
            if found != schema:
                raise UserError(
                    f"{held.path} is of the schema {found.name} ({', '.join(found.fields)}) and the data of "
                    f"{schema.name} ({', '.join(schema.fields)}); give data.heldout.path= rows of the same schema"
                )
            return loaded.rows, frozenset()
        if held.share:
            count = round(held.share * len(pool))
            if count == 0:
                raise UserError(
                    f"data.heldout.share={held.share} of {len(pool)} rows is no row; give a larger share or 0"
                )
            chosen = sorted(numpy_rng(seed, "heldout").choice(len(pool), size=count, replace=False).tolist())
            return pool.select(chosen), frozenset(chosen)
        spare: Sequence[int] = range(len(pool), min(len(rows), len(pool) + held.rows))
        return (rows.select(spare), frozenset()) if len(spare) else (None, frozenset())


@dataclass(frozen=True, kw_only=True)
class FileSource(LoadedSource):
    """A file, a folder or a glob: json, jsonl, csv, tsv (also gz, zst), parquet, arrow, in any of the schemas."""

    path: str

    def load(self, seed: int) -> InstructionDataset:
        """Reads the file."""
        return self.records(load(self.path, self.first), seed)


@dataclass(frozen=True, kw_only=True)
class HubSource(LoadedSource):
    """A dataset of the Hugging Face hub, or its local copy when `path` is given."""

    name: str
    config: str | None
    split: str
    path: str | None

    def load(self, seed: int) -> InstructionDataset:
        """Reads `path` if given, else downloads (or finds in the cache) the named dataset.

        Raises:
            UserError: the dataset cannot be reached or does not exist.
        """
        if self.path is not None:
            return self.records(load(self.path, self.first), seed)
        origin = f"hub dataset {self.name} [{self.split}]"
        try:
            rows = load_dataset(self.name, self.config, split=self.split)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise UserError(
                f"cannot load {origin}: {error}. Check the name and the connection, "
                "or give a local copy with data.path=FILE"
            ) from error
        if not len(rows):
            raise UserError(f"{origin} holds no rows; name another with data.split=")
        check_column_types(rows.features.arrow_schema, origin)
        return self.records(LoadedRows(rows, origin), seed)


def _limited(count: int, limit: int | None) -> int:
    if limit is not None and limit < 1:
        raise UserError(f"data.limit={limit}: give a positive number of rows, or null for all")
    return count if limit is None else min(count, limit)


def _plant(
    pool: Dataset | JsonRows, set_aside: frozenset[int], corrupt: PlantedDefects, schema: Schema, seed: int
) -> tuple[Dataset | JsonRows, list[str]]:
    """Plants defects into the rows that are trained on; held-out rows stay clean and are copied nowhere."""
    if not isinstance(schema, Instruction):
        raise UserError(
            f"data.corrupt plants defects into rows with one response, and these are of the schema {schema.name}; "
            "set its shares to 0"
        )
    rows = pool.to_list()
    trained = [position for position in range(len(rows)) if position not in set_aside]
    planted, found = corrupt.plant(
        [rows[position] for position in trained], derive_seed(seed, "corrupt"), schema.prompt, schema.output, None
    )
    kinds = ["clean"] * len(rows)
    for position, row, kind in zip(trained, planted, found, strict=True):
        rows[position], kinds[position] = row, kind
    if isinstance(pool, JsonRows):
        return JsonRows.from_list(rows), kinds
    return Dataset.from_list(rows, features=pool.features), kinds
