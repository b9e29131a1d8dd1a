"""Length of the response."""

from typing import Any, ClassVar

import numpy as np

from gradfiltering.options import options
from gradfiltering.requests import Evidence, Request
from gradfiltering.scorers.base import Scorer, Scores


@options
class LengthScorer(Scorer):
    """Tokens of the response (Zhao et al., "Long Is More for Alignment", ICML 2024, sec. 3).

    The baseline that a score which merely follows length cannot beat.
    """

    requests: ClassVar[frozenset[Request[Any]]] = frozenset()
    row_wise: ClassVar[bool] = True

    def score(self, evidence: Evidence) -> Scores:
        """[N] response tokens, the closing token counted."""
        return Scores(evidence.example_ids, evidence.response_tokens.astype(np.float64))
