"""Random scores, the baseline every scorer must beat."""

from typing import Any, ClassVar

from gradfiltering.options import options
from gradfiltering.requests import Evidence, Request
from gradfiltering.scorers.base import Scorer, Scores
from gradfiltering.seeding import numpy_rng


@options
class RandomScorer(Scorer):
    """Uniform scores in [0, 1) from the run's seed; trains nothing."""

    requests: ClassVar[frozenset[Request[Any]]] = frozenset()
    row_wise: ClassVar[bool] = False  # a row's number is drawn by its position

    def score(self, evidence: Evidence) -> Scores:
        """[N] independent uniform numbers."""
        rng = numpy_rng(evidence.seed, "random scorer")
        return Scores(evidence.example_ids, rng.random(len(evidence.example_ids)))
