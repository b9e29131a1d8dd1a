"""Relative drop of the gradient norm."""

from typing import ClassVar

import numpy as np

from gradfiltering.options import options
from gradfiltering.scorers.gradient_statistics import GradientScorer, GradientStatistics


@options
class NormalizedDrop(GradientScorer):
    r"""\((G_s - G_t)/(G_s + ε)\) (arXiv 2601.13697, ablation, alternative 2)."""

    uses_variance: ClassVar[bool] = False

    def formula(self, norm_statistics: GradientStatistics) -> np.ndarray:
        """[N] fall of the mean norm as a share of the early norm."""
        return norm_statistics.norm_drop / (norm_statistics.early_norm + self.epsilon)
