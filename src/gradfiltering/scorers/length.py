"""Length of the response."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradfiltering.evidence.base_model import Need
from gradfiltering.scorers.base import Evidence, Scorer, Scores


@dataclass(frozen=True)
class LengthScorer(Scorer):
    """Tokens of the response, the longest first (Zhao et al., "Long Is More for Alignment", ICML 2024, sec. 3).

    The baseline that a score which merely follows length cannot beat.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()

    def score(self, evidence: Evidence) -> Scores:
        """[N] response tokens, the closing token counted."""
        assert evidence.examples is not None, "a run knows its examples"
        return Scores(evidence.example_ids, evidence.examples.response_tokens.astype(np.float64))
