"""The middle of the perplexities."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.stats import rankdata

from gradfiltering.evidence.base_model import Need
from gradfiltering.scorers.base import Evidence, Scorer, Scores


@dataclass(frozen=True)
class PerplexityMiddle(Scorer):
    """Rows whose perplexity under the bare backbone is nearest to the median, by rank.

    Marion et al. ("When Less is More", arXiv 2309.04564, sec. 3) keep the middle of the distribution: the lowest
    perplexities are repetitive, the highest noise. The score is minus the distance to the middle rank, as a share of N.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"losses"})

    def score(self, evidence: Evidence) -> Scores:
        """[N] from -1/2 (an extreme) to 0 (the median)."""
        losses = evidence.observed.losses.pool
        off_middle = np.abs(rankdata(losses) - (len(losses) + 1) / 2)
        return Scores(evidence.example_ids, -off_middle / len(losses), {"bare_perplexity": np.exp(losses)})
