"""Several sources as one dataset: how many rows of each, which, and in what order."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from gradfiltering.data.dataset import InstructionDataset, hash_content
from gradfiltering.data.json_rows import JsonRows, columns_json_lacks, row_at
from gradfiltering.data.loading import LoadedRows, cached, load, open_rows, write_rows
from gradfiltering.data.sources import LoadedSource
from gradfiltering.errors import UserError
from gradfiltering.options import NonNegativeInt, PositiveFloat, PositiveInt, model_validator, options
from gradfiltering.seeding import numpy_rng
from gradfiltering.statistics.rounding import round_half_up

DRAWN_FORMAT = 2  # raise it when the same rows would be written otherwise


@options
class MixturePart:
    """One source of a mixture.

    Attributes:
        path: a file, a folder or a glob.
        weight: its share of the mixture, relative to the other weights.
        count: number of its rows.
        heldout: number of further rows of it that are held out; none of its other rows is used for that.
        rename: fields that get the names of other sources' fields, such as `{question: instruction, answer: output}`.
    """

    path: str
    weight: PositiveFloat | None = None
    count: PositiveInt | None = None
    heldout: NonNegativeInt = 0
    rename: Mapping[str, str] = field(default_factory=dict)


@options
class MixtureSource(LoadedSource):
    """Rows of several files, folders or globs, all of one schema.

    With counts, each source gives so many rows; with weights, sources give rows in these proportions,
    as many as the scarcest allows; with neither, all rows are taken. The rows taken depend on the seed
    and the source's name; their order is a shuffle by the seed. A row whose field `source` is missing or null gets
    its source's name there. Held-out rows are drawn from all rows, or for each source by its own number.

    Attributes:
        sources: by name, the arguments of a `MixturePart`; weights, counts or neither for all of them.
    """

    sources: Mapping[str, Mapping[str, Any]]

    @model_validator(mode="after")
    def _check_sources(self) -> "MixtureSource":
        if not self.sources:
            raise UserError("a mixture needs sources; give each a name, and its path", arguments=("sources",))
        for source_name, part_arguments in self.sources.items():
            try:
                MixturePart(**part_arguments)
            except UserError as error:
                arguments = [f"sources.{source_name}.{argument}" for argument in error.arguments]
                raise UserError(f"source {source_name}: {error}", arguments=arguments) from error
        budgets = {(part.weight is not None, part.count is not None) for part in self.parts.values()}
        if len(budgets) > 1 or (True, True) in budgets:
            raise UserError(
                "the sources mix weights and counts; give every source a weight, or every one a count",
                arguments=("sources",),
            )
        if self.heldout_count and (self.heldout.path is not None or self.heldout.share):
            raise UserError(
                "the sources say how many of their rows are held out, and so does the mixture; say it once",
                arguments=("heldout.path", "heldout.share"),
            )
        return self

    @property
    def heldout_count(self) -> int:
        """Held-out rows that the sources name, 0 where the mixture as a whole has some."""
        return sum(part.heldout for part in self.parts.values())

    @property
    def parts(self) -> dict[str, MixturePart]:
        """The sources by name."""
        return {source_name: MixturePart(**arguments) for source_name, arguments in self.sources.items()}

    def load(self, seed: int) -> InstructionDataset:
        """Draw and shuffle the rows.

        Raises:
            UserError: a source cannot be read, has too few rows, or is of another schema than the first.
        """
        loaded_sources = {
            source_name: self._rename_fields(source_name, load(part.path), part.rename)
            for source_name, part in self.parts.items()
        }
        self._check_schemas(loaded_sources)
        drawn_ids, heldout_ids = self._draw_ids(loaded_sources, seed)
        mixed_order = _shuffle(drawn_ids, numpy_rng(seed, "mixture order"))
        heldout_order = _shuffle(heldout_ids, numpy_rng(seed, "held-out order"))
        source = self
        if heldout_order:
            mixed_order = mixed_order[: self.limit]
            own_heldout = replace(self.heldout, rows=len(heldout_order))
            source = replace(self, limit=len(mixed_order), heldout=own_heldout)
        cache_key = {
            "format": DRAWN_FORMAT,
            "mixture": {
                source_name: [hash_content(loaded.rows, loaded.rows.column_names), loaded.origin]
                for source_name, loaded in loaded_sources.items()
            },
            "sources": {source_name: row_ids.tolist() for source_name, row_ids in drawn_ids.items()},
            "seed": seed,
            **({"limit": self.limit, "heldout": heldout_order} if heldout_order else {}),
        }

        def write_mixture(folder: Path) -> None:
            write_rows(folder, _iterate_mixture(loaded_sources, [*mixed_order, *heldout_order]), [])

        mixed_rows = open_rows(cached(cache_key, write_mixture))
        left_out = {
            name: type_name
            for loaded in loaded_sources.values()
            if isinstance(loaded.rows, Dataset)
            for name, type_name in {**columns_json_lacks(loaded.rows.features.arrow_schema), **loaded.left_out}.items()
        }
        origin = f"mixture of {', '.join(self.sources)}"
        return source.make_dataset(LoadedRows(mixed_rows, origin, left_out=left_out), seed)

    def _draw_ids(
        self, loaded_sources: Mapping[str, LoadedRows], seed: int
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Draw positions of rows by source: those of the mixture, ascending, and those that are held out, shuffled."""
        row_counts = self._count_rows({name: len(loaded.rows) for name, loaded in loaded_sources.items()})
        drawn_ids, heldout_ids = {}, {}
        for source_name, row_count in row_counts.items():
            generator = numpy_rng(seed, "mixture", source_name)
            source_size = len(loaded_sources[source_name].rows)
            drawn_ids[source_name] = np.sort(generator.choice(source_size, size=row_count, replace=False))
            other_ids = np.setdiff1d(np.arange(source_size), drawn_ids[source_name])
            heldout_ids[source_name] = generator.permutation(other_ids)[: self.parts[source_name].heldout]
        return drawn_ids, heldout_ids

    def _rename_fields(self, source_name: str, loaded: LoadedRows, new_names: Mapping[str, str]) -> LoadedRows:
        """Give fields of a source other names.

        Raises:
            UserError: there is no such field, or there is one of the new name already.
        """
        if not new_names:
            return loaded
        argument, field_names = f"sources.{source_name}.rename", loaded.rows.column_names
        if len(set(new_names.values())) < len(new_names):
            raise UserError(
                f"source {source_name}: two fields would be renamed to the same name; give each a name of its own",
                owner=self,
                arguments=(argument,),
            )
        for old_name, new_name in new_names.items():
            if old_name not in field_names:
                raise UserError(
                    f"source {source_name} has no field {old_name!r} to rename; it has {', '.join(field_names)}",
                    owner=self,
                    arguments=(argument,),
                )
            if new_name in field_names:
                raise UserError(
                    f"source {source_name} has a field {new_name!r} already; rename {old_name!r} to another name",
                    owner=self,
                    arguments=(argument,),
                )
        if isinstance(loaded.rows, Dataset):
            return replace(loaded, rows=loaded.rows.rename_columns(dict(new_names)))
        renamed_rows = [{new_names.get(name, name): value for name, value in row.items()} for row in loaded.rows]
        return replace(loaded, rows=JsonRows.from_list(renamed_rows))

    def _check_schemas(self, loaded_sources: Mapping[str, LoadedRows]) -> None:
        source_schemas = {name: self.find_schema(loaded) for name, loaded in loaded_sources.items()}
        first_name, first_schema = next(iter(source_schemas.items()))
        for source_name, source_schema in source_schemas.items():
            if source_schema != first_schema:
                raise UserError(
                    f"source {source_name} is of the schema {source_schema.name} "
                    f"({', '.join(source_schema.fields)}) and source {first_name} of {first_schema.name} "
                    f"({', '.join(first_schema.fields)}); bring them to the same columns"
                )

    def _count_rows(self, source_sizes: Mapping[str, int]) -> dict[str, int]:
        """Return the number of rows to take of each source."""
        parts = self.parts
        for source_name, part in parts.items():
            if (part.count or 0) > source_sizes[source_name]:
                raise UserError(
                    f"source {source_name}: its count {part.count} is more than the "
                    f"{source_sizes[source_name]} rows of {part.path}; give a smaller count"
                )
            if source_sizes[source_name] - part.heldout < (part.count or 1):
                raise UserError(
                    f"source {source_name}: {part.heldout} held-out rows leave too few of the "
                    f"{source_sizes[source_name]} rows of {part.path}; give a smaller number"
                )
        source_sizes = {name: size - parts[name].heldout for name, size in source_sizes.items()}
        weights = {source_name: part.weight for source_name, part in parts.items() if part.weight is not None}
        if not weights:
            return {source_name: part.count or source_sizes[source_name] for source_name, part in parts.items()}
        rows_per_weight = min(source_sizes[source_name] / weight for source_name, weight in weights.items())
        row_counts = {
            source_name: min(round_half_up(weight * rows_per_weight), source_sizes[source_name])
            for source_name, weight in weights.items()
        }
        for source_name, row_count in row_counts.items():
            if row_count < 1:
                raise UserError(
                    f"source {source_name}: its weight {weights[source_name]} gives no row; raise the weight"
                )
        return row_counts


def _shuffle(ids_by_source: Mapping[str, np.ndarray], generator: np.random.Generator) -> list[tuple[str, int]]:
    """Return name of the source and id of each row, in shuffled order."""
    rows = [(name, int(row_id)) for name, row_ids in ids_by_source.items() for row_id in row_ids]
    return [rows[index] for index in generator.permutation(len(rows))]


def _iterate_mixture(
    loaded_sources: Mapping[str, LoadedRows], row_order: Sequence[tuple[str, int]]
) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield rows by name of the source and position, each with the name of its source, and 0 for no line of a file."""
    for source_name, row_id in row_order:
        row_values = {"source": source_name, **row_at(loaded_sources[source_name].rows, row_id)}
        if row_values["source"] is None:
            row_values["source"] = source_name
        yield row_values, 0
