"""A random subset."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradfiltering.evidence.base_model import Need
from gradfiltering.scorers.base import Evidence, Scores
from gradfiltering.seeding import numpy_rng
from gradfiltering.selectors.base import Budget, Selection


@dataclass(frozen=True)
class RandomSelector(Budget):
    """Draws rows uniformly without replacement; looks at no score and trains nothing."""

    needs: ClassVar[frozenset[Need]] = frozenset()

    def select(self, evidence: Evidence, total: int, scores: Scores | None) -> Selection:
        """`budget` rows drawn from the run's seed, in ascending order of id."""
        return Selection(self.draw(evidence.example_ids, total, evidence.seed))

    def draw(self, example_ids: np.ndarray, total: int, seed: int) -> list[int]:
        """`budget` of these ids, in ascending order."""
        size = self.rows(total, len(example_ids))
        return sorted(numpy_rng(seed, "random subset").choice(example_ids, size=size, replace=False).tolist())
