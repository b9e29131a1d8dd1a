"""The middle of the perplexities."""

from typing import Any, ClassVar

import numpy as np
from scipy.stats import rankdata

from gradfiltering.options import options
from gradfiltering.requests import BaseModelLosses, Evidence, Request
from gradfiltering.scorers.base import Scorer, Scores


@options
class PerplexityMiddle(Scorer):
    """Rows whose perplexity under the base model is nearest to the median, by rank.

    Marion et al. ("When Less is More", arXiv 2309.04564, sec. 3) keep the middle of the
    distribution: the lowest perplexities are repetitive, the highest noise. The score is minus the
    distance to the middle rank, as a share of N.
    """

    requests: ClassVar[frozenset[Request[Any]]] = frozenset({BaseModelLosses()})
    row_wise: ClassVar[bool] = False

    def score(self, evidence: Evidence) -> Scores:
        """[N] from -1/2 (an extreme) to 0 (the median)."""
        losses = evidence.get(BaseModelLosses()).row_losses
        middle_distance = np.abs(rankdata(losses) - (len(losses) + 1) / 2)
        score_columns = {"base_perplexity": np.exp(losses)}
        return Scores(evidence.example_ids, -middle_distance / len(losses), score_columns)
