"""Agreement of the members alone."""

import numpy as np

from gradfiltering.options import options
from gradfiltering.scorers.gradient_statistics import GradientScorer, GradientStatistics


@options
class InverseVariance(GradientScorer):
    r"""\(1/(V_t + ε)\): uncertainty without the drop; shows what the variance adds. Ours."""

    def formula(self, norm_statistics: GradientStatistics) -> np.ndarray:
        """[N] inverse of the members' variance."""
        return 1 / (norm_statistics.late_variance + self.epsilon)
