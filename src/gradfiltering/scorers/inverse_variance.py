"""Agreement of the members alone."""

from dataclasses import dataclass

import numpy as np

from gradfiltering.scorers.statistics import GradientScorer, GradientStatistics


@dataclass(frozen=True)
class InverseVariance(GradientScorer):
    r"""\(1/(V_t + ε)\): uncertainty alone, without the drop. Not in the paper; it shows what the variance adds."""

    def formula(self, stats: GradientStatistics) -> np.ndarray:
        """[N] inverse of the members' variance."""
        return 1 / (stats.variance_late + self.epsilon)
