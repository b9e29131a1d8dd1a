"""G-SNR, the score of GradFiltering."""

import numpy as np

from gradfiltering.options import options
from gradfiltering.scorers.gradient_statistics import GradientScorer, GradientStatistics


@options
class GSNR(GradientScorer):
    r"""Gradient signal-to-noise ratio, \((G_s - G_t)/(G_s + ε) · 1/(V_t + ε)\).

    Source: arXiv 2601.13697, eq. 5. High for examples whose gradient norm falls as training
    proceeds and on which the members agree.
    """

    def formula(self, norm_statistics: GradientStatistics) -> np.ndarray:
        """[N] relative drop of the norm, divided by the members' variance."""
        relative_drop = norm_statistics.norm_drop / (norm_statistics.early_norm + self.epsilon)
        return relative_drop / (norm_statistics.late_variance + self.epsilon)
