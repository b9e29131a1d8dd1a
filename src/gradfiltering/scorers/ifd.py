"""Instruction-following difficulty."""

from dataclasses import dataclass

import numpy as np

from gradfiltering.errors import UserError
from gradfiltering.evidence.base_model import Need, ResponseLosses
from gradfiltering.models.templates import TEMPLATES
from gradfiltering.scorers.base import Evidence, Scorer, Scores

RATIOS = ("perplexity", "loss")


@dataclass(frozen=True)
class IFD(Scorer):
    r"""How little the instruction helps to predict the response (Superfiltering, Li et al., ACL 2024, sec. 3).

    With the mean losses of a response given its prompt and alone, the score is \(e^{L(y|x)} / e^{L(y)}\), or
    \(L(y|x) / L(y)\) as in the earlier Cherry LLM (Li et al., NAACL 2024, sec. 2). Where it is `keep_below` or more the
    instruction hinders; such rows come after all others, the worst last.

    Attributes:
        ratio: `perplexity` or `loss`.
        template: of the prompt, whatever the run trains with.
        max_tokens: longest input.
        keep_below: rows whose ratio is this or more are taken last; None keeps the plain order.
    """

    ratio: str
    template: str
    max_tokens: int
    keep_below: float | None

    def __post_init__(self):
        if self.ratio not in RATIOS:
            raise UserError(f"scorer.ratio={self.ratio}: give one of: {', '.join(RATIOS)}")
        if self.template not in TEMPLATES:
            raise UserError(f"scorer.template={self.template}: give one of: {', '.join(TEMPLATES)}")
        if self.max_tokens < 2:
            raise UserError(f"scorer.max_tokens={self.max_tokens}: give 2 or more")

    @property
    def needs(self) -> frozenset[Need]:  # type: ignore[override]
        """Both losses of each response, under this template."""
        return frozenset({ResponseLosses(self.template, self.max_tokens)})

    def score(self, evidence: Evidence) -> Scores:
        """The ratio of the rows that have both losses, minus itself where it is too high; the others are unscored."""
        found = evidence.observed.answers[ResponseLosses(self.template, self.max_tokens)]
        known = np.setdiff1d(np.arange(len(evidence.example_ids)), list(found.reasons))
        if not len(known):
            raise UserError(f"no row has an IFD: {', '.join(sorted(set(found.reasons.values())))}")
        given, alone = found.given_prompt[known], found.alone[known]
        ratio = np.exp(given - alone) if self.ratio == "perplexity" else given / np.maximum(alone, np.finfo(float).tiny)
        limit = np.inf if self.keep_below is None else self.keep_below
        return Scores(
            evidence.example_ids[known],
            np.where(ratio < limit, ratio, -ratio),
            {"ifd": ratio, "loss_given_prompt": given, "loss_alone": alone},
            [(int(evidence.example_ids[row]), reason) for row, reason in sorted(found.reasons.items())],
        )
