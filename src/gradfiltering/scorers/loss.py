"""Loss under the base model."""

from typing import Any, ClassVar, Literal

from gradfiltering.options import options
from gradfiltering.requests import BaseModelLosses, Evidence, Request
from gradfiltering.scorers.base import Scorer, Scores


@options
class LossScorer(Scorer):
    """Mean negative log-likelihood of the response by the base model, nats per token.

    The plainest notion of difficulty; the starting utility of LEAD (arXiv 2505.07437, sec. 4).

    Attributes:
        prefer: `large`, or `small` for minus the loss: rows that the model finds likely.
    """

    prefer: Literal["large", "small"] = "large"

    requests: ClassVar[frozenset[Request[Any]]] = frozenset({BaseModelLosses()})
    row_wise: ClassVar[bool] = True

    def score(self, evidence: Evidence) -> Scores:
        """[N] losses, or minus the losses."""
        row_losses = evidence.get(BaseModelLosses()).row_losses
        return Scores(evidence.example_ids, row_losses if self.prefer == "large" else -row_losses)
