"""A random subset."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradfiltering.scorers.base import Scores
from gradfiltering.seeding import numpy_rng
from gradfiltering.selectors.base import Budget


@dataclass(frozen=True)
class RandomSelector(Budget):
    """Draws rows uniformly without replacement; looks at no score and trains nothing."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def select(self, example_ids: np.ndarray, total: int, scores: Scores | None, seed: int) -> list[int]:
        """`budget` rows drawn from the run's seed, in ascending order of id."""
        size = self.rows(total, len(example_ids))
        return sorted(numpy_rng(seed, "random subset").choice(example_ids, size=size, replace=False).tolist())
