"""A wide cut by a selector, then a narrow one by another."""

from typing import Any

from gradfiltering.errors import UserError
from gradfiltering.options import Share, options
from gradfiltering.requests import Evidence, Request
from gradfiltering.scorers.base import Scores
from gradfiltering.selectors.base import Budget, Selection, Selector, check_inner_budget
from gradfiltering.selectors.facility_location import FacilityLocationSelector
from gradfiltering.selectors.top import TopSelector


@options
class TwoStageSelector(Budget):
    """Select by `second` among the rows that `first` selected.

    The budget of the whole counts all rows. That of `first` counts the rows that can be selected, so that 0.7 of them
    are left after the first cut, however many others are held out, dropped or without a score.

    With `scorer=ifd`, the top fifth and then facility location this is Superfiltering.D (Li et al.,
    ACL 2024, sec. 5).

    Attributes:
        first: the wide cut, usually by score.
        second: the narrow cut, usually for diversity; it has the same budget as the whole.
    """

    fraction: Share | None = 0.02
    first: Selector = TopSelector(0.2)
    second: Selector = FacilityLocationSelector(0.02)

    @property
    def requests(self) -> frozenset[Request[Any]]:
        """Measurements that either reads."""
        return self.first.requests | self.second.requests

    @property
    def uses_scores(self) -> bool:
        """True where either does."""
        return self.first.uses_scores or self.second.uses_scores

    def budget_rows(self, total_rows: int) -> int:
        """Return the budget, which must be no more than the first cut would leave of all rows.

        Raises:
            UserError: it does not, or the second selector has another budget.
        """
        first_rows, row_count = self.first.budget_rows(total_rows), super().budget_rows(total_rows)
        if row_count > first_rows:
            raise UserError(
                f"the first cut leaves {first_rows} of {total_rows} rows, and {row_count} are to be "
                "selected; raise the budget of the first selector or lower that of the whole",
                owner=self.first,
                arguments=("fraction", "count"),
            )
        return check_inner_budget("second", self.second, row_count, total_rows)

    def select(self, evidence: Evidence, total_rows: int, scores: Scores | None) -> Selection:
        """Select twice; facts about the first cut are named `first_…`."""
        selectable_rows = len(evidence.example_ids if scores is None else scores.example_ids)
        wide_cut = self.first.select(evidence, selectable_rows, scores)
        wide_scores = None if scores is None else scores.select_rows(wide_cut.example_ids)
        wide_evidence = evidence.select_rows(wide_cut.example_ids)
        narrow_cut = self.second.select(wide_evidence, total_rows, wide_scores)
        stopped = narrow_cut.stopped or wide_cut.stopped
        if len(wide_cut.example_ids) < super().budget_rows(total_rows):
            stopped = stopped or f"the first cut leaves {len(wide_cut.example_ids)} rows; raise its budget"
        return Selection(
            narrow_cut.example_ids,
            {
                **{f"first_{name}": fact for name, fact in wide_cut.facts.items()},
                **narrow_cut.facts,
                "first_selected": len(wide_cut.example_ids),
            },
            narrow_cut.trace,
            stopped,
        )
