"""Any score, compared among rows of like length only."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from gradfiltering.errors import UserError
from gradfiltering.evidence.base_model import Need
from gradfiltering.scorers.base import Evidence, Scorer, Scores


@dataclass(frozen=True)
class LengthControlled(Scorer):
    """The rank of a row's score among the rows of its length bin, as a share of the bin. Ours.

    A mean over n response tokens has a norm that falls with n, so scores of gradients follow length even where length
    says nothing of quality (docs/findings.md). Within a bin of like lengths it cannot matter; the top share of the
    whole then is the top share of every bin.

    Attributes:
        base: the scorer.
        bins: length bins, of as equal size as ties allow.
    """

    base: Scorer
    bins: int

    def __post_init__(self):
        if self.bins < 1:
            raise UserError(f"scorer.bins={self.bins}: give a positive number")

    @property
    def needs(self) -> frozenset[Need]:  # type: ignore[override]
        """What the base looks at."""
        return self.base.needs

    def check(self, members: int) -> None:
        """Refuses what the base refuses."""
        self.base.check(members)

    def score(self, evidence: Evidence) -> Scores:
        """[N] in (0, 1]; `base_score` and `length_bin` stand beside it."""
        assert evidence.examples is not None, "a run knows its examples"
        base = self.base.score(evidence)
        rows = np.searchsorted(evidence.example_ids, base.example_ids)
        bins = length_bins(evidence.examples.response_tokens[rows], self.bins)
        score = np.empty(len(base.score))
        for one in np.unique(bins):
            inside = bins == one
            score[inside] = rankdata(base.score[inside]) / inside.sum()
        columns = {**base.columns, "base_score": base.score, "length_bin": bins.astype(np.float64)}
        return Scores(base.example_ids, score, columns, base.unscored)


def length_bins(lengths: np.ndarray, bins: int) -> np.ndarray:
    """[N] number of each row's bin; equal lengths share a bin."""
    edges = np.quantile(lengths, np.arange(1, bins) / bins)
    return np.searchsorted(edges, lengths, side="left")
