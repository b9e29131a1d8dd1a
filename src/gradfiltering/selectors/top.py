"""The highest scores."""

from dataclasses import dataclass
from typing import ClassVar

from gradfiltering.evidence.base_model import Need
from gradfiltering.scorers.base import Evidence, Scores
from gradfiltering.selectors.base import Budget, Selection


@dataclass(frozen=True)
class TopSelector(Budget):
    """Takes the rows of highest score, ties broken by example id (arXiv 2601.13697, sec. 3)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"scores"})

    def select(self, evidence: Evidence, total: int, scores: Scores | None) -> Selection:
        """The best `budget` rows, in ascending order of id."""
        assert scores is not None, "the top selector declares the need scores"
        best = scores.order[: self.rows(total, len(scores.example_ids))]
        return Selection(sorted(scores.example_ids[best].tolist()))
