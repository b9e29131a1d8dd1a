"""Random scores, the baseline every scorer must beat."""

from dataclasses import dataclass
from typing import ClassVar

from gradfiltering.scorers.base import Evidence, Scores
from gradfiltering.seeding import numpy_rng


@dataclass(frozen=True)
class RandomScorer:
    """Uniform scores in [0, 1) from the run's seed; trains nothing."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def check(self, members: int) -> None:
        """Any ensemble will do: none is looked at."""

    def score(self, evidence: Evidence) -> Scores:
        """[N] independent uniform numbers."""
        rng = numpy_rng(evidence.seed, "random scorer")
        return Scores(evidence.example_ids, rng.random(len(evidence.example_ids)))
