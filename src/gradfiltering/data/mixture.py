"""Several sources as one dataset: how many rows of each, which, and in what order."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradfiltering.data.dataset import InstructionDataset, hash_content
from gradfiltering.data.loading import LoadedRows, cached, load, open_rows, write_rows
from gradfiltering.data.sources import LoadedSource
from gradfiltering.errors import UserError
from gradfiltering.seeding import numpy_rng

SOURCE_KEYS = ("path", "weight", "count")


@dataclass(frozen=True, kw_only=True)
class MixtureSource(LoadedSource):
    """Rows of several files, folders or globs, all of one schema.

    With counts, each source gives so many rows; with weights, sources give rows in these proportions, as many as the
    scarcest allows; with neither, all rows are taken. Which rows are taken depends on the seed and the source's name;
    their order is a shuffle by the seed. A row without a field `source` gets its source's name there.

    Attributes:
        sources: by name, a mapping with `path` and either `weight` or `count` (the same for all) or neither.
    """

    sources: Mapping[str, Mapping[str, Any]]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sources:
            raise UserError(
                "data.sources is empty; give each source a name and a path: '+data.sources.mine={path: my.jsonl}'"
            )
        for source_name, source_options in self.sources.items():
            option_path = f"data.sources.{source_name}"
            unknown_keys = set(source_options) - set(SOURCE_KEYS)
            if unknown_keys or not source_options.get("path"):
                raise UserError(
                    f"{option_path} has the keys {', '.join(source_options)}; give path, and weight or count"
                )
            for option_key in ("weight", "count"):
                option_value = source_options.get(option_key)
                number_type = int if option_key == "count" else int | float
                if option_value is not None and (
                    isinstance(option_value, bool) or not isinstance(option_value, number_type) or not option_value > 0
                ):
                    raise UserError(f"{option_path}.{option_key}={option_value!r}: give a positive number")
        if len({self._how(source_options) for source_options in self.sources.values()}) > 1:
            raise UserError("data.sources mixes weights and counts; give every source a weight, or every one a count")

    @staticmethod
    def _how(source_options: Mapping[str, Any]) -> tuple[bool, bool]:
        return source_options.get("weight") is not None, source_options.get("count") is not None

    def load(self, seed: int) -> InstructionDataset:
        """Draws and shuffles the rows.

        Raises:
            UserError: a source cannot be read, has too few rows, or is of another schema than the first.
        """
        loaded_sources = {
            source_name: load(str(source_options["path"])) for source_name, source_options in self.sources.items()
        }
        source_schemas = {
            source_name: self.schema_of(loaded_rows) for source_name, loaded_rows in loaded_sources.items()
        }
        first_name, first_schema = next(iter(source_schemas.items()))
        for source_name, source_schema in source_schemas.items():
            if source_schema != source_schemas[first_name]:
                raise UserError(
                    f"data.sources.{source_name} is of the schema {source_schema.name} "
                    f"({', '.join(source_schema.fields)}) and data.sources.{first_name} of {first_schema.name} "
                    f"({', '.join(first_schema.fields)}); bring them to the same columns"
                )
        picked_positions = {
            source_name: np.sort(
                numpy_rng(seed, "mixture", source_name).choice(
                    len(loaded_sources[source_name].rows), size=row_count, replace=False
                )
            )
            for source_name, row_count in self._counts(
                {source_name: len(loaded_rows.rows) for source_name, loaded_rows in loaded_sources.items()}
            ).items()
        }
        shuffled_order = numpy_rng(seed, "mixture order").permutation(
            sum(len(mixed_rows) for mixed_rows in picked_positions.values())
        )
        option_key = {
            "mixture": {
                source_name: [hash_content(loaded_rows.rows, loaded_rows.rows.column_names), loaded_rows.origin]
                for source_name, loaded_rows in loaded_sources.items()
            },
            "sources": {source_name: picked_positions[source_name].tolist() for source_name in picked_positions},
            "seed": seed,
        }

        def mixed_rows() -> Iterator[tuple[dict[str, Any], int]]:
            all_positions = [
                (source_name, int(row_position))
                for source_name, row_positions in picked_positions.items()
                for row_position in row_positions
            ]
            for describe_row in shuffled_order:
                source_name, row_position = all_positions[describe_row]
                yield {"source": source_name, **loaded_sources[source_name].rows[row_position]}, 0

        def write_mixture(cache_folder: Path) -> None:
            write_rows(cache_folder, mixed_rows(), [])

        mixture_origin = f"mixture of {', '.join(self.sources)}"
        return self.records(LoadedRows(open_rows(cached(option_key, write_mixture)), mixture_origin), seed)

    def _counts(self, source_sizes: Mapping[str, int]) -> dict[str, int]:
        """Rows of each source."""
        sources = self.sources
        for source_name, source_options in sources.items():
            if (source_options.get("count") or 0) > source_sizes[source_name]:
                raise UserError(
                    f"data.sources.{source_name}.count={source_options['count']} is more than the "
                    f"{source_sizes[source_name]} rows of {source_options['path']}; give a smaller count"
                )
        if next(iter(sources.values())).get("weight") is None:
            return {
                source_name: source_options.get("count") or source_sizes[source_name]
                for source_name, source_options in sources.items()
            }
        rows_per_weight = min(
            source_sizes[source_name] / source_options["weight"] for source_name, source_options in sources.items()
        )
        row_counts = {
            source_name: min(round(source_options["weight"] * rows_per_weight), source_sizes[source_name])
            for source_name, source_options in sources.items()
        }
        for source_name, row_count in row_counts.items():
            if row_count < 1:
                raise UserError(
                    f"data.sources.{source_name}.weight={sources[source_name]['weight']} gives no row; raise the weight"
                )
        return row_counts
