"""The protocol of scorers, and the scores they give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from gradfiltering.errors import UserError
from gradfiltering.requests import Evidence, Request


class Scorer(Protocol):
    """Gives each example a score, higher is better.

    A class attribute serves for either property.
    """

    @property
    def requests(self) -> frozenset[Request[Any]]:
        """Measurements that the scorer reads."""
        ...

    @property
    def row_wise(self) -> bool:
        """True where a row's score depends on the measurements of that row alone."""
        ...

    def check_members(self, member_count: int) -> None:
        """Refuse an ensemble of too few members, before it is trained."""
        return

    def score(self, evidence: Evidence) -> "Scores":
        """Score every example of the evidence."""
        ...


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

    def __post_init__(self) -> None:
        not_finite = ~np.isfinite(self.score)
        if not_finite.any():
            first_ids = self.example_ids[not_finite][:10].tolist()
            raise UserError(
                f"{int(not_finite.sum())} scores are not finite, first at rows {first_ids}; look "
                "at their gradient norms"
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

    def select_rows(self, example_ids: Sequence[int] | np.ndarray) -> "Scores":
        """Return the scores of those of the rows that have one."""
        indices = np.flatnonzero(np.isin(self.example_ids, np.asarray(example_ids)))
        score_columns = {name: column[indices] for name, column in self.columns.items()}
        return Scores(self.example_ids[indices], self.score[indices], score_columns)


def score_rows(scorer: Scorer, evidence: Evidence, results: Mapping[Request[Any], Any]) -> np.ndarray:
    """Score all rows by other results than the evidence holds.

    Returns:
        [N] float64, NaN for rows without a score.
    """
    scores = scorer.score(evidence.add_results(results))
    all_scores = np.full(len(evidence.example_ids), np.nan)
    all_scores[np.searchsorted(evidence.example_ids, scores.example_ids)] = scores.score
    return all_scores
