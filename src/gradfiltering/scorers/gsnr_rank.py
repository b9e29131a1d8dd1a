"""Drop and agreement, fused by rank."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from gradfiltering.errors import UserError
from gradfiltering.scorers.statistics import GradientScorer, GradientStatistics


@dataclass(frozen=True)
class RankGSNR(GradientScorer):
    r"""\((1 - w) · r((G_s - G_t)/(G_s + ε)) + w · r(-V_t/(G_t² + ε))\), r = rank as a share of N. Ours.

    A product turns the order over where norms rise: of two equal rises, the one on which the members agree scores
    lower. A sum of ranks cannot, whatever the signs: more drop and more agreement are always better. Nor does one
    factor swamp the other, as 1/V_t does when the members hardly disagree.

    Attributes:
        agreement: w, the weight of the members' agreement.
    """

    agreement: float

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.agreement <= 1:
            raise UserError(f"scorer.agreement={self.agreement}: give a weight in [0, 1]")

    def formula(self, stats: GradientStatistics) -> np.ndarray:
        """[N] in (0, 1]; it depends on the other rows, as ranks do."""
        drop = stats.drop / (stats.g_early + self.epsilon)
        disagreement = stats.variance_late / (np.square(stats.g_late) + self.epsilon)
        count = len(drop)
        return (1 - self.agreement) * rankdata(drop) / count + self.agreement * rankdata(-disagreement) / count
