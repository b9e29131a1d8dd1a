"""Drop of the gradient norm, normalised by the variance only."""

import numpy as np

from gradfiltering.options import options
from gradfiltering.scorers.gradient_statistics import GradientScorer, GradientStatistics


@options
class VarianceOnly(GradientScorer):
    r"""\((G_s - G_t)/(V_t + ε)\) (arXiv 2601.13697, ablation, alternative 3)."""

    def formula(self, norm_statistics: GradientStatistics) -> np.ndarray:
        """[N] fall of the mean norm over the members' variance."""
        return norm_statistics.norm_drop / (norm_statistics.late_variance + self.epsilon)
