"""All of the data."""

from typing import Any, ClassVar

from gradfiltering.options import options
from gradfiltering.requests import Evidence, Request
from gradfiltering.scorers.base import Scores
from gradfiltering.selectors.base import Selection


@options
class FullSelector:
    """Select every row that can be trained on."""

    requests: ClassVar[frozenset[Request[Any]]] = frozenset()
    uses_scores: ClassVar[bool] = False

    def budget_rows(self, total_rows: int) -> int:
        """Return all of them."""
        return total_rows

    def select(self, evidence: Evidence, total_rows: int, scores: Scores | None) -> Selection:
        """Select all rows, in ascending order of id."""
        return Selection(evidence.example_ids.tolist())
