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

KEYS = ("path", "weight", "count")


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
        for name, source in self.sources.items():
            option = f"data.sources.{name}"
            unknown = set(source) - set(KEYS)
            if unknown or not source.get("path"):
                raise UserError(f"{option} has the keys {', '.join(source)}; give path, and weight or count")
            for key in ("weight", "count"):
                value = source.get(key)
                kind = int if key == "count" else int | float
                if value is not None and (isinstance(value, bool) or not isinstance(value, kind) or not value > 0):
                    raise UserError(f"{option}.{key}={value!r}: give a positive number")
        if len({self._how(source) for source in self.sources.values()}) > 1:
            raise UserError("data.sources mixes weights and counts; give every source a weight, or every one a count")

    @staticmethod
    def _how(source: Mapping[str, Any]) -> tuple[bool, bool]:
        return source.get("weight") is not None, source.get("count") is not None

    def load(self, seed: int) -> InstructionDataset:
        """Draws and shuffles the rows.

        Raises:
            UserError: a source cannot be read, has too few rows, or is of another schema than the first.
        """
        loaded = {name: load(str(source["path"])) for name, source in self.sources.items()}
        schemas = {name: self.schema_of(one) for name, one in loaded.items()}
        first = next(iter(schemas))
        for name, schema in schemas.items():
            if schema != schemas[first]:
                raise UserError(
                    f"data.sources.{name} is of the schema {schema.name} ({', '.join(schema.fields)}) and "
                    f"data.sources.{first} of {schemas[first].name} ({', '.join(schemas[first].fields)}); bring them "
                    "to the same columns"
                )
        picked = {
            name: np.sort(numpy_rng(seed, "mixture", name).choice(len(loaded[name].rows), size=count, replace=False))
            for name, count in self._counts({name: len(one.rows) for name, one in loaded.items()}).items()
        }
        order = numpy_rng(seed, "mixture order").permutation(sum(len(rows) for rows in picked.values()))
        key = {
            "mixture": {
                name: [hash_content(one.rows, one.rows.column_names), one.origin] for name, one in loaded.items()
            },
            "sources": {name: picked[name].tolist() for name in picked},
            "seed": seed,
        }

        def rows() -> Iterator[tuple[dict[str, Any], int]]:
            every = [(name, int(position)) for name, positions in picked.items() for position in positions]
            for place in order:
                name, position = every[place]
                yield {"source": name, **loaded[name].rows[position]}, 0

        def write(folder: Path) -> None:
            write_rows(folder, rows(), [])

        origin = f"mixture of {', '.join(self.sources)}"
        return self.records(LoadedRows(open_rows(cached(key, write)), origin), seed)

    def _counts(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Rows of each source."""
        sources = self.sources
        for name, source in sources.items():
            if (source.get("count") or 0) > sizes[name]:
                raise UserError(
                    f"data.sources.{name}.count={source['count']} is more than the {sizes[name]} rows of "
                    f"{source['path']}; give a smaller count"
                )
        if next(iter(sources.values())).get("weight") is None:
            return {name: source.get("count") or sizes[name] for name, source in sources.items()}
        rows_per_weight = min(sizes[name] / source["weight"] for name, source in sources.items())
        counts = {name: min(round(source["weight"] * rows_per_weight), sizes[name]) for name, source in sources.items()}
        for name, count in counts.items():
            if count < 1:
                raise UserError(f"data.sources.{name}.weight={sources[name]['weight']} gives no row; raise the weight")
        return counts
