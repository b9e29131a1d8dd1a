"""What a scorer is, what it may look at, and the table it makes."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradfiltering.data.dataset import InstructionDataset, write_truth
from gradfiltering.data.examples import Examples
from gradfiltering.ensembles.snapshots import SnapshotPair
from gradfiltering.errors import UserError
from gradfiltering.evidence.base_model import Need, Observed
from gradfiltering.evidence.task_gradients import CheckpointGradients, TaskGradients
from gradfiltering.runs.cache import atomic_path
from gradfiltering.runs.gradient_log import GradientLog


@dataclass(frozen=True)
class Evidence:
    """Everything a scorer or selector may look at; a row's planted kind is not among it.

    Attributes:
        example_ids: [N] int64, ascending: the rows that can be scored.
        seed: the run's seed.
        epochs: the snapshots to compare.
        gradient_log: the log, for those that declare the need `gradient_log`.
        observed: what the bare backbone showed, for the needs `losses`, `el2n`, `embeddings` and `AnswerLosses`.
        projections: [M, N, K] float32 random projections of the rows' gradients at the late epoch, for the need
            `projections`.
        examples: the rows as token ids.
        sources: where each row of the dataset comes from, by example id; None where rows do not say.
        influences: gradients at checkpoints and on validation rows, for each need `TaskGradients`.
    """

    example_ids: np.ndarray
    seed: int
    epochs: SnapshotPair
    gradient_log: GradientLog | None = None
    observed: Observed = field(default_factory=Observed)
    projections: np.ndarray | None = None
    examples: Examples | None = None
    sources: Sequence[str] | None = None
    influences: dict[TaskGradients, CheckpointGradients] = field(default_factory=dict)

    def among(self, example_ids: Sequence[int] | np.ndarray) -> "Evidence":
        """The evidence about some of the rows, for a selector that chooses among them; without log and influences."""
        ids = np.sort(np.asarray(example_ids, dtype=np.int64))
        rows = np.searchsorted(self.example_ids, ids)
        return replace(
            self,
            example_ids=ids,
            gradient_log=None,
            observed=self.observed.take(rows),
            projections=None if self.projections is None else self.projections[:, rows],
            examples=None if self.examples is None else self.examples.select(ids.tolist()),
            influences={},
        )

    def member_projections(self) -> np.ndarray:
        """[M, N, K] float32.

        Raises:
            UserError: the run made no projections.
        """
        if self.projections is None:
            raise UserError("this run made no projections of gradients; choose a scorer and selector without that need")
        return self.projections


def mean_projections(evidence: Evidence, members: str) -> np.ndarray:
    """[N, K] float32: the projections of the first member, or their mean over members.

    Args:
        evidence: with projections.
        members: `mean` or `first`.
    """
    projections = evidence.member_projections()
    return projections[0] if members == "first" else projections.mean(axis=0, dtype=np.float32)


class Scorer(Protocol):
    """Gives each example a score, higher is better.

    Attributes:
        needs: what it looks at: `gradient_log`, `projections`, `losses`, `el2n`, `embeddings`, `AnswerLosses`,
            `TaskGradients`.
    """

    needs: ClassVar[frozenset[Need]]

    def check(self, members: int) -> None:
        """Refuses an ensemble of too few members, before it is trained; any will do where nothing else is said."""

    def score(self, evidence: Evidence) -> "Scores":
        """Scores every example of the evidence."""
        ...


def score_rows(
    scorer: "Scorer", evidence: Evidence, log: Any, epochs: SnapshotPair, projections: np.ndarray | None
) -> np.ndarray:
    """[N] float64 scores by another log, pair of epochs and projections than the evidence's; NaN for unscored rows."""
    scores = scorer.score(replace(evidence, gradient_log=log, epochs=epochs, projections=projections))
    every = np.full(len(evidence.example_ids), np.nan)
    every[np.searchsorted(evidence.example_ids, scores.example_ids)] = scores.score
    return every


@dataclass(frozen=True)
class Scores:
    """Scores of N examples.

    Attributes:
        example_ids: [N] int64, ascending.
        score: [N] float64, higher is better.
        columns: statistics behind the scores, each [N] float64, written beside them.
        unscored: id and reason of each row of the evidence that got no score.
    """

    example_ids: np.ndarray
    score: np.ndarray
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    unscored: list[tuple[int, str]] = field(default_factory=list)

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

    def among(self, example_ids: Sequence[int] | np.ndarray) -> "Scores":
        """The scores of those of the rows that have one."""
        rows = np.flatnonzero(np.isin(self.example_ids, np.asarray(example_ids)))
        columns = {name: column[rows] for name, column in self.columns.items()}
        return Scores(self.example_ids[rows], self.score[rows], columns)

    def write(self, folder: Path, unscored: Sequence[tuple[int, str]]) -> None:
        """Writes `scores.parquet`, and `unscored.parquet` with the rows that got no score.

        Args:
            folder: the run folder.
            unscored: id and reason of each row of the dataset that is not in the evidence.
        """
        columns = {"example_id": self.example_ids, "score": self.score.astype(np.float64), "rank": self.rank}
        with atomic_path(folder / "scores.parquet") as part:
            pq.write_table(pa.table({**columns, **self.columns}), part)
        write_unscored(folder / "unscored.parquet", [*unscored, *self.unscored])


def write_unscored(path: Path, unscored: list[tuple[int, str]]) -> None:
    """Writes `unscored.parquet`: example id and reason of each row without a score."""
    schema = pa.schema([("example_id", pa.int64()), ("reason", pa.string())])
    rows = [{"example_id": example_id, "reason": reason} for example_id, reason in sorted(unscored)]
    with atomic_path(path) as part:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), part)


def write_known(run_dir: Path, records: InstructionDataset, examples: Examples) -> None:
    """Writes what is known of the rows before any of them is scored: `unscored.parquet`, and `truth.parquet` if any."""
    write_unscored(run_dir / "unscored.parquet", examples.unscored)
    write_truth(run_dir / "truth.parquet", records.kinds)
