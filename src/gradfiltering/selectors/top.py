"""The highest scores."""

from typing import Any, ClassVar

import numpy as np

from gradfiltering.options import options
from gradfiltering.requests import Evidence, Request
from gradfiltering.scorers.base import Scores
from gradfiltering.selectors.base import Budget, Selection, Strata


@options
class TopSelector(Budget):
    """Select the rows of highest score, ties broken by example id (arXiv 2601.13697, sec. 3)."""

    requests: ClassVar[frozenset[Request[Any]]] = frozenset()
    uses_scores: ClassVar[bool] = True

    def select(self, evidence: Evidence, total_rows: int, scores: Scores | None) -> Selection:
        """Select the best rows."""
        assert scores is not None, "the top selector uses scores"
        row_count = self.rows_to_select(total_rows, len(scores.example_ids))
        return Selection(sorted(scores.example_ids[scores.order[:row_count]].tolist()))

    def quota_strata(self) -> Strata:
        """Take the best of all rows, which are one stratum."""
        return Strata(
            None, lambda values, counts: np.zeros(len(values)), lambda row_count, sizes: np.array([row_count])
        )
