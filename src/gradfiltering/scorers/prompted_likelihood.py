"""Rows whose answer the base model finds likely, and likelier for knowing the question."""

from typing import Annotated, Any, ClassVar

import numpy as np
from annotated_types import Ge
from scipy.stats import rankdata

from gradfiltering.errors import UserError
from gradfiltering.options import Probability, options
from gradfiltering.requests import BaseModelLosses, Evidence, Request, ResponseLosses
from gradfiltering.scorers.base import Scorer, Scores


@options
class PromptedLikelihood(Scorer):
    r"""\((1 - w) · r(-L) + w · r((A - L)/A)\), r = rank / N. Ours, registered in docs/registered_score.md.

    L is the loss of the response given its prompt, in the template that the run trains with, A that of the response
    alone, both under the base model. Noise and wrong answers are unlikely (a high L); an answer to another question is
    likely by itself, and no likelier for the question (a low (A − L)/A). It trains nothing: two forward passes. Of a
    conversation L is the loss of all answers and A that of the first alone.

    Attributes:
        agreement: w, the weight of how much the prompt helps, in [0, 1].
        template: of the pass that measures A; the prompt is not part of it.
        max_tokens: longest input of that pass.
    """

    agreement: Probability = 0.4
    template: str = "plain"
    max_tokens: Annotated[int, Ge(2)] = 1024

    row_wise: ClassVar[bool] = False

    @property
    def losses_request(self) -> ResponseLosses:
        """Loss of each response alone; the loss under this template is measured along, and not read."""
        return ResponseLosses(self.template, self.max_tokens)

    @property
    def requests(self) -> frozenset[Request[Any]]:
        """Losses of each response alone, and given its prompt as the run trains with it."""
        return frozenset({BaseModelLosses(), self.losses_request})

    def score(self, evidence: Evidence) -> Scores:
        """Score the rows that have both losses; `loss`, `loss_alone` and `agreement` stand beside the score.

        Raises:
            UserError: no row has both.
        """
        losses = evidence.get(self.losses_request)
        example_ids, scored_rows = evidence.example_ids, losses.measured_rows
        if not len(scored_rows):
            raise UserError(f"no row has a loss of its response alone: {losses.describe_missing()}")
        prompted = evidence.get(BaseModelLosses()).row_losses[scored_rows]
        alone = losses.alone[scored_rows]
        agreement = (alone - prompted) / np.maximum(alone, np.finfo(float).tiny)
        ranks = (1 - self.agreement) * rankdata(-prompted) + self.agreement * rankdata(agreement)
        return Scores(
            example_ids[scored_rows],
            ranks / len(scored_rows),
            {"loss": prompted, "loss_alone": alone, "agreement": agreement},
            losses.list_missing(example_ids),
        )
