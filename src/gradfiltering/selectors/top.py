"""The highest scores."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradfiltering.scorers.base import Scores
from gradfiltering.selectors.base import Budget


@dataclass(frozen=True)
class TopSelector(Budget):
    """Takes the rows of highest score, ties broken by example id (arXiv 2601.13697, sec. 3)."""

    needs: ClassVar[frozenset[str]] = frozenset({"scores"})

    def select(self, example_ids: np.ndarray, total: int, scores: Scores | None, seed: int) -> list[int]:
        """The best `budget` rows, in ascending order of id."""
        assert scores is not None, "the top selector declares the need scores"
        best = scores.order[: self.rows(total, len(example_ids))]
        return sorted(scores.example_ids[best].tolist())
