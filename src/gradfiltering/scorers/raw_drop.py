"""Raw drop of the gradient norm."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradfiltering.scorers.statistics import GradientScorer, GradientStatistics


@dataclass(frozen=True)
class RawDrop(GradientScorer):
    r"""\(G_s - G_t\) (arXiv 2601.13697, ablation, alternative 1)."""

    uses_variance: ClassVar[bool] = False

    def formula(self, stats: GradientStatistics) -> np.ndarray:
        """[N] fall of the mean norm from the early to the late epoch."""
        return stats.drop
