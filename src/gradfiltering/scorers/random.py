"""Random scores, the baseline every scorer must beat."""

from dataclasses import dataclass
from typing import ClassVar

from gradfiltering.evidence.base_model import Need
from gradfiltering.scorers.base import Evidence, Scorer, Scores
from gradfiltering.seeding import numpy_rng


@dataclass(frozen=True)
class RandomScorer(Scorer):
    """Uniform scores in [0, 1) from the run's seed; trains nothing."""

    needs: ClassVar[frozenset[Need]] = frozenset()

    def score(self, evidence: Evidence) -> Scores:
        """[N] independent uniform numbers."""
        rng = numpy_rng(evidence.seed, "random scorer")
        return Scores(evidence.example_ids, rng.random(len(evidence.example_ids)))
