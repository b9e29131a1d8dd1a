"""G-SNR with the variance relative to the norm."""

from dataclasses import dataclass

import numpy as np

from gradfiltering.scorers.statistics import GradientScorer, GradientStatistics


@dataclass(frozen=True)
class RelativeGSNR(GradientScorer):
    r"""\((G_s - G_t)/(G_s + ε) · 1/(V_t/(G_t² + ε) + ε)\). Ours.

    V_t grows with the square of the norm, so 1/V_t brings back the scale that the first factor of G-SNR took out:
    the score then follows norm, and with it length. Relative variance is free of scale. What it does not mend: where
    norms rise, dividing by a small disagreement still makes a score more negative; `gsnr_rank` is free of that.
    """

    def formula(self, stats: GradientStatistics) -> np.ndarray:
        """[N] relative drop over relative variance."""
        relative = stats.variance_late / (np.square(stats.g_late) + self.epsilon)
        return stats.drop / (stats.g_early + self.epsilon) / (relative + self.epsilon)
