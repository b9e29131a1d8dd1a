"""Instruction-following difficulty."""

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge

from gradfiltering.errors import UserError
from gradfiltering.options import PositiveFloat, options
from gradfiltering.requests import Evidence, Request, ResponseLosses
from gradfiltering.scorers.base import Scorer, Scores


@options
class IFD(Scorer):
    r"""Instruction-following difficulty: how little the instruction helps to predict the response.

    With the mean losses of a response given its prompt and alone, the score is
    \(e^{L(y|x)} / e^{L(y)}\) (Superfiltering, Li et al., ACL 2024, sec. 3), or \(L(y|x) / L(y)\) as
    in the earlier Cherry LLM (Li et al., NAACL 2024, sec. 2). Where it is `keep_below` or more the
    instruction hinders; such rows come after all others, the worst last.

    Attributes:
        ratio: `perplexity` or `loss`.
        template: of the prompt, whatever the run trains with.
        max_tokens: longest input.
        keep_below: rows whose ratio is this or more are taken last; None keeps the plain order.
    """

    ratio: Literal["perplexity", "loss"] = "perplexity"
    template: str = "plain"
    max_tokens: Annotated[int, Ge(2)] = 1024
    keep_below: PositiveFloat | None = 1.0

    row_wise: ClassVar[bool] = True

    @property
    def losses_request(self) -> ResponseLosses:
        """Both losses of each response, under this template."""
        return ResponseLosses(self.template, self.max_tokens)

    @property
    def requests(self) -> frozenset[Request[Any]]:
        """Both losses of each response, under this template."""
        return frozenset({self.losses_request})

    def score(self, evidence: Evidence) -> Scores:
        """Score the rows that have both losses; a ratio that is too high counts negative.

        Raises:
            UserError: no row has both.
        """
        losses = evidence.get(self.losses_request)
        example_ids, scored_rows = evidence.example_ids, losses.measured_rows
        if not len(scored_rows):
            raise UserError(f"no row has an IFD: {losses.describe_missing()}")
        given_prompt, alone = losses.given_prompt[scored_rows], losses.alone[scored_rows]
        if self.ratio == "perplexity":
            ratio = np.exp(given_prompt - alone)
        else:
            ratio = given_prompt / np.maximum(alone, np.finfo(float).tiny)
        limit = np.inf if self.keep_below is None else self.keep_below
        return Scores(
            example_ids[scored_rows],
            np.where(ratio < limit, ratio, -ratio),
            {"ifd": ratio, "loss_given_prompt": given_prompt, "loss_alone": alone},
            losses.list_missing(example_ids),
        )
