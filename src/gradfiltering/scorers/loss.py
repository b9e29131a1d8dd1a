"""Loss under the backbone without adapters."""

from dataclasses import dataclass
from typing import ClassVar

from gradfiltering.evidence.base_model import Need
from gradfiltering.scorers.base import Evidence, Scorer, Scores


@dataclass(frozen=True)
class LossScorer(Scorer):
    """Mean negative log-likelihood of the response under the bare backbone, in nats per token, the hardest rows first.

    The plainest notion of difficulty; the starting utility of LEAD (arXiv 2505.07437, sec. 4).
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"losses"})

    def score(self, evidence: Evidence) -> Scores:
        """[N] losses."""
        return Scores(evidence.example_ids, evidence.observed.losses.pool)
