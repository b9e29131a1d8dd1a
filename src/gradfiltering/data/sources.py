"""Sources of rows: a file, a folder, the hub. One class for each option of the `data` group."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any, Literal, Protocol, TypeAlias

import datasets
import numpy as np
from datasets import Dataset, load_dataset

from gradfiltering.data.dataset import InstructionDataset, check_rows
from gradfiltering.data.json_rows import JsonRows, columns_json_lacks
from gradfiltering.data.loading import LoadedRows, load
from gradfiltering.data.preference_schema import find_preference_schema
from gradfiltering.data.row_contents import choose_schema, count_contents
from gradfiltering.data.row_hygiene import HygieneName
from gradfiltering.data.schemas import Columns, Instruction, Mixed, Schema, find_candidates
from gradfiltering.data.study_part import StudyPart
from gradfiltering.data.templates import AUTO
from gradfiltering.errors import UserError, attributed_to
from gradfiltering.options import NonNegativeInt, PositiveInt, ShareBelowOne, options
from gradfiltering.seeding import derive_seed, numpy_rng
from gradfiltering.statistics.rounding import share_of_count

Rows: TypeAlias = Dataset | JsonRows


class DatasetSource(Protocol):
    """A dataset that a run can start from."""

    def load(self, seed: int) -> InstructionDataset:
        """Read the rows; the same seed gives the same rows."""


class DefectPlanter(Protocol):
    """Spoils some rows on purpose, so that a selection can be compared with a known truth."""

    @property
    def any_planted(self) -> bool:
        """True if any row is to be spoilt."""

    def plant(
        self,
        rows: Sequence[Mapping[str, Any]],
        seed: int,
        prompt_fields: Sequence[str],
        output_field: str,
        wrong_answer: Callable[[Mapping[str, Any], np.random.Generator], str] | None,
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """Return the rows in the same order, some of them spoilt, and the kind of each."""


@options
class Heldout:
    """Rows that are kept for evaluation.

    Attributes:
        path: a file of held-out rows in the same schema, or None.
        rows: how many to take from the rows that follow the row limit (none of the pool is used).
        share: share of the pool to set aside instead; those rows are listed in `unscored.parquet`.
    """

    path: str | None
    rows: NonNegativeInt
    share: ShareBelowOne


@options
class LoadedSource:
    """The options that all sources of a user's rows share.

    Attributes:
        limit: reads only this many rows, from the start; None for all.
        template: name of the prompt template, or `auto` for the model's own chat template, else Alpaca's.
        schema: one of `SCHEMAS`, or `preference` for rows of a chosen and a rejected answer.
        columns: names of the columns that hold a row's question and answer.
        heldout: the rows that are kept for evaluation.
        corrupt: the defects that are planted.
        drop: signs of poor rows that a row is left out for.
        study_part: the rows to find settings on, or those to report results on.
    """

    limit: PositiveInt | None
    template: str
    schema: Literal["auto", "alpaca", "prompt_completion", "messages", "text", "preference"]
    columns: Columns
    heldout: Heldout
    corrupt: DefectPlanter
    drop: Sequence[HygieneName] = field(default=(), kw_only=True)
    study_part: StudyPart = field(default=StudyPart(), kw_only=True)

    @property
    def rows_to_read(self) -> int | None:
        """Number of rows that are needed from the source, held-out ones included; None for all."""
        if self.limit is None or self.study_part.use != "all":  # how many rows are of the part is not known before
            return None
        # Held-out rows from a file of their own, or a share of the pool, need none beyond the limit.
        needs_no_more = self.heldout.path is not None or self.heldout.share
        return self.limit + (0 if needs_no_more else self.heldout.rows)

    def find_schema(self, loaded_rows: LoadedRows) -> Schema:
        """Find the schema of all rows of a source, each of which is looked at; files may mix schemas.

        Raises:
            UserError: the columns fit no schema, or a row does not fit its schema.
        """
        column_names = loaded_rows.rows.column_names
        with attributed_to(self, "schema"):
            candidates: list[Schema] = (
                [find_preference_schema(column_names, self.columns, loaded_rows.origin)]
                if self.schema == "preference"
                else find_candidates(column_names, self.columns, self.schema, loaded_rows.origin)
            )
        schema = choose_schema(loaded_rows.rows, candidates)
        if isinstance(loaded_rows.rows, Dataset):
            for name, type_name in columns_json_lacks(loaded_rows.rows.features.arrow_schema).items():
                if name in schema.fields:
                    raise UserError(
                        f"{loaded_rows.origin}: column '{name}' holds {type_name}, which is no text; "
                        "cast it to text, or name another column",
                        owner=self.columns,
                        arguments=schema.options,
                    )
        check_rows(loaded_rows.rows, schema, loaded_rows.describe_row)
        return schema

    def make_dataset(self, loaded_rows: LoadedRows, seed: int) -> InstructionDataset:
        """Divide loaded rows into pool and held-out rows, and plant the defects asked for."""
        schema = self.find_schema(loaded_rows)
        all_rows = loaded_rows.rows
        pool_size = len(all_rows) if self.limit is None else min(len(all_rows), self.limit)
        pool = all_rows.select(range(pool_size))
        other_rows = self.study_part.find_other_rows(all_rows, schema)
        heldout_rows, set_aside = self._hold_out(all_rows, pool, schema, other_rows, seed)
        other_part = frozenset(row_id for row_id in other_rows if row_id < pool_size)
        if len(other_part) == pool_size:
            raise UserError(
                f"no row of {loaded_rows.origin} is of the part for {self.study_part.use}; give another share, or all "
                "rows",
                owner=self.study_part,
                arguments=("use", "tuning_share"),
            )
        defect_kinds = None
        if self.corrupt.any_planted:
            pool, defect_kinds = _plant_defects(pool, set_aside, self.corrupt, schema, seed)
        # A conversation takes the chat template or a layout of its own, which single questions beside it share.
        has_own_layout = schema.is_conversational and self.template not in (AUTO, "chat")
        template = "conversation" if has_own_layout else self.template
        return InstructionDataset(
            rows=pool,
            heldout=heldout_rows,
            schema=schema,
            kinds=defect_kinds,
            set_aside=set_aside,
            template=template,
            origin=loaded_rows.origin,
            form=loaded_rows.form,
            contents=count_contents(pool, schema, loaded_rows.left_out),
            drop=self.drop,
            other_part=other_part,
        )

    def _hold_out(
        self, all_rows: Rows, pool: Rows, schema: Schema, other_rows: frozenset[int], seed: int
    ) -> tuple[Rows | None, frozenset[int]]:
        """Return the held-out rows, and which rows of the pool they are taken from.

        Args:
            all_rows: of the source.
            pool: the first of them, to select from.
            schema: theirs.
            other_rows: positions of rows of the other part of a study, which are not held out either.
            seed: of a draw.
        """
        if self.heldout.path is not None:
            with attributed_to(self.heldout, "path"):
                loaded_heldout = load(self.heldout.path)
                heldout_schema = self.find_schema(loaded_heldout)
            pool_schemas = schema.members if isinstance(schema, Mixed) else (schema,)
            heldout_schemas = heldout_schema.members if isinstance(heldout_schema, Mixed) else (heldout_schema,)
            if not set(heldout_schemas) <= set(pool_schemas):
                raise UserError(
                    f"{self.heldout.path} is of the schema {heldout_schema.name} "
                    f"({', '.join(heldout_schema.fields)}) and the data of {schema.name} "
                    f"({', '.join(schema.fields)}); hold out rows of the same schema",
                    owner=self.heldout,
                    arguments=("path",),
                )
            other_heldout = self.study_part.find_other_rows(loaded_heldout.rows, heldout_schema)
            part_ids = [row_id for row_id in range(len(loaded_heldout.rows)) if row_id not in other_heldout]
            return (loaded_heldout.rows.select(part_ids) if other_heldout else loaded_heldout.rows), frozenset()
        if self.heldout.share:
            pool_ids = [row_id for row_id in range(len(pool)) if row_id not in other_rows]
            heldout_count = share_of_count(self.heldout.share, len(pool_ids))
            if heldout_count == 0:
                raise UserError(
                    f"a share of {self.heldout.share} of {len(pool_ids)} rows is no row; give a larger "
                    "share to hold out, or 0",
                    owner=self.heldout,
                    arguments=("share",),
                )
            generator = numpy_rng(seed, "heldout")
            drawn_rows = generator.choice(len(pool_ids), size=heldout_count, replace=False)
            heldout_ids = sorted(pool_ids[index] for index in drawn_rows.tolist())
            return pool.select(heldout_ids), frozenset(heldout_ids)
        later_ids: Sequence[int] = range(len(pool), len(all_rows))
        if other_rows:
            later_ids = [row_id for row_id in later_ids if row_id not in other_rows]
        spare_ids = later_ids[: self.heldout.rows]
        return (all_rows.select(spare_ids), frozenset()) if len(spare_ids) else (None, frozenset())


@options
class FileSource(LoadedSource):
    """A file, a folder or a glob: json, jsonl, csv, tsv (also gz, zst), parquet, arrow.

    Attributes:
        path: of this machine, or an address such as `s3://bucket/rows-*.jsonl` or `hf://datasets/OWNER/NAME/*.parquet`.
    """

    path: str

    def load(self, seed: int) -> InstructionDataset:
        """Read the file."""
        with attributed_to(self, "path"):
            return self.make_dataset(load(self.path, self.rows_to_read), seed)


@options
class HubSource(LoadedSource):
    """A dataset of the Hugging Face hub, or its local copy when `path` is given."""

    name: str
    config: str | None
    split: str
    path: str | None

    def load(self, seed: int) -> InstructionDataset:
        """Read `path` if given, else download the named dataset (or find it in the cache).

        Raises:
            UserError: the dataset cannot be reached or does not exist.
        """
        if self.path is not None:
            with attributed_to(self, "path"):
                return self.make_dataset(load(self.path, self.rows_to_read, self.split), seed)
        origin = f"hub dataset {self.name} [{self.split}]"
        try:
            hub_rows = load_dataset(self.name, self.config, split=self.split)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise UserError(
                f"cannot load {origin}: {error}. Check the name and the connection, or give a local copy",
                owner=self,
                arguments=("path",),
            ) from error
        if not len(hub_rows):
            raise UserError(f"{origin} holds no rows; name another split", owner=self, arguments=("split",))
        if hub_rows._indices is not None:
            hub_rows = hub_rows.flatten_indices()
        # Without their features, images and sounds stay the bytes they are.
        plain_rows = Dataset(hub_rows.data.table.replace_schema_metadata(None))
        return self.make_dataset(LoadedRows(plain_rows, origin), seed)


def _plant_defects(
    pool: Rows, set_aside: frozenset[int], planter: DefectPlanter, schema: Schema, seed: int
) -> tuple[Rows, list[str]]:
    """Plant defects into the rows that are trained on; held-out rows stay clean and are copied nowhere."""
    if not isinstance(schema, Instruction):
        raise UserError(
            "defects are planted into rows with one response, and these are of the schema "
            f"{schema.name}; set the shares of defects to 0"
        )
    pool_rows = pool.to_list()
    training_ids = [row_id for row_id in range(len(pool_rows)) if row_id not in set_aside]
    training_rows = [pool_rows[row_id] for row_id in training_ids]
    planted_rows, planted_kinds = planter.plant(
        training_rows, derive_seed(seed, "corrupt"), schema.prompt, schema.output, None
    )
    defect_kinds = ["clean"] * len(pool_rows)
    for row_id, planted_row, planted_kind in zip(training_ids, planted_rows, planted_kinds, strict=True):
        pool_rows[row_id], defect_kinds[row_id] = planted_row, planted_kind
    if isinstance(pool, JsonRows):
        return JsonRows.from_list(pool_rows), defect_kinds
    return Dataset.from_list(pool_rows, features=pool.features), defect_kinds
