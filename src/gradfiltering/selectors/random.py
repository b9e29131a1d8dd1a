"""A random subset."""

from typing import Any, ClassVar

import numpy as np

from gradfiltering.options import options
from gradfiltering.requests import Evidence, Request
from gradfiltering.scorers.base import Scores
from gradfiltering.seeding import numpy_rng
from gradfiltering.selectors.base import Budget, Selection


@options
class RandomSelector(Budget):
    """Draw rows uniformly without replacement; reads no score and trains nothing."""

    requests: ClassVar[frozenset[Request[Any]]] = frozenset()
    uses_scores: ClassVar[bool] = False

    def select(self, evidence: Evidence, total_rows: int, scores: Scores | None) -> Selection:
        """Draw rows by the run's seed."""
        return Selection(self.draw_rows(evidence.example_ids, total_rows, evidence.seed))

    def draw_rows(self, example_ids: np.ndarray, total_rows: int, seed: int) -> list[int]:
        """Draw the budget's number of these ids, in ascending order."""
        rng = numpy_rng(seed, "random subset")
        row_count = self.rows_to_select(total_rows, len(example_ids))
        return sorted(rng.choice(example_ids, size=row_count, replace=False).tolist())
