"""All of the data."""

from dataclasses import dataclass
from typing import ClassVar

from gradfiltering.evidence.base_model import Need
from gradfiltering.scorers.base import Evidence, Scores
from gradfiltering.selectors.base import Selection


@dataclass(frozen=True)
class FullSelector:
    """Takes every row that can be trained on."""

    needs: ClassVar[frozenset[Need]] = frozenset()

    def wanted(self, total: int) -> int:
        """All of them."""
        return total

    def select(self, evidence: Evidence, total: int, scores: Scores | None) -> Selection:
        """All rows, in ascending order of id."""
        return Selection(evidence.example_ids.tolist())
