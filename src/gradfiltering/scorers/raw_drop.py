"""Drop of the gradient norm."""

from typing import ClassVar

import numpy as np

from gradfiltering.options import options
from gradfiltering.scorers.gradient_statistics import GradientScorer, GradientStatistics


@options
class RawDrop(GradientScorer):
    r"""\(G_s - G_t\) (arXiv 2601.13697, ablation, alternative 1)."""

    uses_variance: ClassVar[bool] = False

    def formula(self, norm_statistics: GradientStatistics) -> np.ndarray:
        """[N] fall of the mean norm from the early to the late snapshot."""
        return norm_statistics.norm_drop
