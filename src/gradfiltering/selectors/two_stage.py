"""First one selector, then another among what it chose."""

from dataclasses import dataclass
from typing import Any

from gradfiltering.errors import UserError
from gradfiltering.evidence.base_model import Need
from gradfiltering.scorers.base import Evidence, Scores
from gradfiltering.selectors.base import Budget, Selection, Selector, inner_budget


@dataclass(frozen=True)
class TwoStageSelector(Budget):
    """`second` chooses among the rows that `first` chose; both budgets count all rows of the dataset.

    With `scorer=ifd`, the top fifth and then facility location this is Superfiltering.D (Li et al., ACL 2024, sec. 5).

    Attributes:
        first: the wide cut, usually by score.
        second: the narrow one, usually for diversity; it has the same budget as the whole.
    """

    first: Selector
    second: Selector

    @property
    def needs(self) -> frozenset[Need]:
        """What either looks at."""
        return self.first.needs | self.second.needs

    def wanted(self, total: int) -> int:
        """The budget, which must lie within what the first cut leaves.

        Raises:
            UserError: it does not, or the second selector has another.
        """
        first, wanted = self.first.wanted(total), super().wanted(total)
        if wanted > first:
            raise UserError(
                f"the first cut leaves {first} of {total} rows, and {wanted} are asked for; raise "
                "selector.first.fraction or lower selector.fraction"
            )
        return inner_budget("second", self.second, wanted, total)

    def select(self, evidence: Evidence, total: int, scores: Scores | None) -> Selection:
        """The second choice, with what either said about itself."""
        wide = self.first.select(evidence, total, scores)
        kept = None if scores is None else scores.among(wide.example_ids)
        narrow = self.second.select(evidence.among(wide.example_ids), total, kept)
        about: dict[str, Any] = {**wide.about, **narrow.about, "first_selected": len(wide.example_ids)}
        return Selection(narrow.example_ids, about, narrow.trace, narrow.stopped or wide.stopped)
