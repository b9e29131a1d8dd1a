"""What a scorer is, what it may look at, and the table it makes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradfiltering.errors import UserError
from gradfiltering.proxy.log import EpochPair, GradientLog
from gradfiltering.store import atomic_path


@dataclass(frozen=True)
class Evidence:
    """Everything a scorer may look at; a row's planted kind is not among it.

    Attributes:
        example_ids: [N] int64, ascending: the rows that can be scored.
        seed: the run's seed.
        epochs: the snapshots to compare.
        gradient_log: the log, for scorers that declare the need `gradient_log`.
    """

    example_ids: np.ndarray
    seed: int
    epochs: EpochPair
    gradient_log: GradientLog | None


class Scorer(Protocol):
    """Gives each example a score, higher is better.

    Attributes:
        needs: stages' results it looks at, any of `gradient_log`, `projections`, `losses`, `embeddings`.
    """

    needs: ClassVar[frozenset[str]]

    def check(self, members: int) -> None:
        """Refuses an ensemble of too few members, before it is trained."""

    def score(self, evidence: Evidence) -> "Scores":
        """Scores every example of the evidence."""


@dataclass(frozen=True)
class Scores:
    """Scores of N examples.

    Attributes:
        example_ids: [N] int64, ascending.
        score: [N] float64, higher is better.
        columns: statistics behind the scores, each [N] float64, written beside them.
    """

    example_ids: np.ndarray
    score: np.ndarray
    columns: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self):
        bad = ~np.isfinite(self.score)
        if bad.any():
            rows = self.example_ids[bad][:10].tolist()
            raise UserError(
                f"{int(bad.sum())} scores are not finite, first at rows {rows}; look at their gradient norms"
            )

    @property
    def order(self) -> np.ndarray:
        """[N] positions from best to worst; ties by example id."""
        return np.lexsort((self.example_ids, -self.score))

    @property
    def rank(self) -> np.ndarray:
        """[N] int64, 1 = best."""
        rank = np.empty(len(self.score), dtype=np.int64)
        rank[self.order] = np.arange(1, len(self.score) + 1)
        return rank

    def write(self, path: Path) -> None:
        """Writes `scores.parquet`."""
        columns = {"example_id": self.example_ids, "score": self.score.astype(np.float64), "rank": self.rank}
        with atomic_path(path) as part:
            pq.write_table(pa.table({**columns, **self.columns}), part)


def write_unscored(path: Path, unscored: list[tuple[int, str]]) -> None:
    """Writes `unscored.parquet`: example id and reason of each row without a score."""
    schema = pa.schema([("example_id", pa.int64()), ("reason", pa.string())])
    rows = [{"example_id": example_id, "reason": reason} for example_id, reason in unscored]
    with atomic_path(path) as part:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), part)
