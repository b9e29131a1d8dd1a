"""What a selector is, how large a budget is, and the subset it leaves."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradfiltering.data.export import write_rows
from gradfiltering.data.records import Records
from gradfiltering.errors import UserError
from gradfiltering.scorers.base import Scores
from gradfiltering.store import atomic_path


class Selector(Protocol):
    """Chooses rows.

    Attributes:
        needs: what it looks at, any of `scores`, `projections`, `embeddings`.
    """

    needs: ClassVar[frozenset[str]]

    def wanted(self, total: int) -> int:
        """How many of `total` rows are asked for.

        Raises:
            UserError: no row at all, or more rows than there are.
        """

    def select(self, example_ids: np.ndarray, total: int, scores: Scores | None, seed: int) -> list[int]:
        """Chooses among the rows that can be scored.

        Args:
            example_ids: [N] int64, ascending: the rows to choose from.
            total: all rows of the dataset, unscored ones included; budgets count these.
            scores: of the same rows, for selectors that declare the need `scores`.
            seed: the run's seed.

        Returns:
            Chosen example ids in ascending order.
        """


@dataclass(frozen=True)
class Budget:
    """How many rows to choose: a fraction of all rows of this dataset, or a count.

    Attributes:
        fraction: share in (0, 1], or None.
        count: rows, or None.
    """

    fraction: float | None
    count: int | None

    def __post_init__(self):
        if (self.fraction is None) == (self.count is None):
            raise UserError(
                f"selector.fraction={self.fraction}, selector.count={self.count}: give exactly one of them, "
                "for example selector.fraction=0.1, or selector.fraction=null selector.count=500"
            )
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise UserError(f"selector.fraction={self.fraction}: give a fraction in (0, 1], such as 0.1 for 10 %")
        if self.count is not None and self.count < 1:
            raise UserError(f"selector.count={self.count}: give a positive number of rows")

    def wanted(self, total: int) -> int:
        """The budget in rows: round(fraction · total), or the count.

        Raises:
            UserError: the budget is no row at all, or more rows than the dataset has.
        """
        wanted = self.count if self.count is not None else round(self.fraction * total)  # type: ignore[operator]
        if wanted < 1:
            raise UserError(f"selector.fraction={self.fraction} of {total} rows is no row; give a larger fraction")
        if wanted > total:
            raise UserError(
                f"selector.count={self.count} is more than the dataset's {total} rows; give a smaller count"
            )
        return wanted

    def rows(self, total: int, available: int) -> int:
        """The budget in rows, at most what can be chosen from."""
        return min(self.wanted(total), available)


def shortfall(asked: int, chosen: int) -> list[str]:
    """A warning where fewer rows were chosen than asked for."""
    if chosen >= asked:
        return []
    return [
        f"the selector was asked for {asked} rows and chose {chosen}: no more of them can be scored (unscored.parquet "
        "says why); mend those rows, or ask for fewer with selector.fraction= or selector.count="
    ]


def write_subset(run_dir: Path, records: Records, chosen: Sequence[int], scores: Scores | None) -> None:
    """Writes the chosen rows as they came in (`subset.jsonl` and the input's own file type) and `subset.parquet`."""
    write_rows(run_dir, records, chosen)
    ids = np.asarray(chosen, dtype=np.int64)
    values = np.full(len(ids), np.nan)
    if scores is not None:
        values = scores.score[np.searchsorted(scores.example_ids, ids)]
    with atomic_path(run_dir / "subset.parquet") as part:
        pq.write_table(pa.table({"example_id": ids, "score": values}), part)
