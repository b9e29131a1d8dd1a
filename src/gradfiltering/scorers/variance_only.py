"""Drop of the gradient norm, normalised by the variance only."""

from dataclasses import dataclass

import numpy as np

from gradfiltering.scorers.statistics import GradientScorer, GradientStatistics


@dataclass(frozen=True)
class VarianceOnly(GradientScorer):
    r"""\((G_s - G_t)/(V_t + ε)\) (arXiv 2601.13697, ablation, alternative 3, "variance-normalised only")."""

    def formula(self, stats: GradientStatistics) -> np.ndarray:
        """[N] fall of the mean norm over the members' variance."""
        return stats.drop / (stats.variance_late + self.epsilon)
