"""Drop and agreement, fused by rank."""

from typing import ClassVar

import numpy as np
from scipy.stats import rankdata

from gradfiltering.options import Probability, options
from gradfiltering.scorers.gradient_statistics import GradientScorer, GradientStatistics


@options
class RankGSNR(GradientScorer):
    r"""\((1 - w) · r((G_s - G_t)/(G_s + ε)) + w · r(-V_t/(G_t² + ε))\), r = rank / N. Ours.

    A product turns the order over where norms rise: of two equal rises, the row on which the
    members agree scores lower. A sum of ranks cannot, whatever the signs: more drop and more
    agreement are always better. Nor does one factor swamp the other, as 1/V_t does when the members
    hardly disagree.

    Attributes:
        agreement: w, the weight of the members' agreement, in [0, 1].
    """

    agreement: Probability = 0.5

    row_wise: ClassVar[bool] = False

    def formula(self, norm_statistics: GradientStatistics) -> np.ndarray:
        """[N] in (0, 1]."""
        relative_drop = norm_statistics.norm_drop / (norm_statistics.early_norm + self.epsilon)
        squared_norm = np.square(norm_statistics.late_norm)
        disagreement = norm_statistics.late_variance / (squared_norm + self.epsilon)
        row_count = len(relative_drop)
        drop_share = rankdata(relative_drop) / row_count
        agreement_share = rankdata(-disagreement) / row_count
        score: np.ndarray = (1 - self.agreement) * drop_share + self.agreement * agreement_share
        return score
