"""Loss under the base model."""

from typing import Any, ClassVar

from gradfiltering.options import options
from gradfiltering.requests import BaseModelLosses, Evidence, Request
from gradfiltering.scorers.base import Scorer, Scores


@options
class LossScorer(Scorer):
    """Mean negative log-likelihood of the response by the base model, nats per token.

    The plainest notion of difficulty; the starting utility of LEAD (arXiv 2505.07437, sec. 4).
    """

    requests: ClassVar[frozenset[Request[Any]]] = frozenset({BaseModelLosses()})
    row_wise: ClassVar[bool] = True

    def score(self, evidence: Evidence) -> Scores:
        """[N] losses."""
        return Scores(evidence.example_ids, evidence.get(BaseModelLosses()).row_losses)
