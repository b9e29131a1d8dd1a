"""The protocol of selectors, the budget in rows, and the selection."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from gradfiltering.errors import UserError
from gradfiltering.options import PositiveInt, Share, model_validator, options
from gradfiltering.requests import Evidence, Request
from gradfiltering.scorers.base import Scores
from gradfiltering.statistics.rounding import share_of_count


@dataclass(frozen=True)
class Selection:
    """Rows that a selector selected.

    Attributes:
        example_ids: selected rows in ascending order.
        facts: numbers about the selection by name, for `summary.json`.
        trace: columns of equal length, a row for each step in the order of selection, for
            `selection.parquet`.
        stopped: why fewer rows were selected than the budget has, where the selector itself ended
            the search.
    """

    example_ids: list[int]
    facts: dict[str, Any] = field(default_factory=dict)
    trace: dict[str, np.ndarray] = field(default_factory=dict)
    stopped: str | None = None

    def summary(self, options: Mapping[str, str], total_rows: int, scores: Scores | None) -> dict[str, Any]:
        """Return the part of `summary.json` about the selection.

        Args:
            options: names of the scorer and the selector in use.
            total_rows: all rows of the dataset.
            scores: None where no row was scored.
        """
        return {
            "scorer": None if scores is None else options["scorer"],
            "selector": options["selector"],
            "fraction": len(self.example_ids) / total_rows,
            "selected": len(self.example_ids),
            **self.facts,
        }


class Selector(Protocol):
    """Selects rows.

    A class attribute serves for either property.
    """

    @property
    def requests(self) -> frozenset[Request[Any]]:
        """Measurements that the selector reads."""
        ...

    @property
    def uses_scores(self) -> bool:
        """True where the selector reads scores."""
        ...

    def budget_rows(self, total_rows: int) -> int:
        """Return how many of `total_rows` rows to select.

        Raises:
            UserError: no row at all, or more rows than there are.
        """
        ...

    def select(self, evidence: Evidence, total_rows: int, scores: Scores | None) -> Selection:
        """Select among the rows that can be scored.

        Args:
            evidence: about the N rows to select from.
            total_rows: all rows of the dataset, unscored ones included; budgets count these.
            scores: of these rows, or of most of them, for selectors that use scores.
        """
        ...


@dataclass(frozen=True)
class Strata:
    """Groups of rows by the values of one column, of each of which the highest scores are selected, ties by example id.

    A selector that does no more than this has a method `quota_strata` that returns it, and serves rows on disk, too.

    Attributes:
        column: that groups the rows, None where all are one group.
        group_values: [V] different values of the column, ascending, and [V] how many rows have each -> [V] the stratum
            of each, a name or number.
        share_budget: rows to select and [S] rows of each stratum, in order of names -> [S] rows to select from each.
    """

    column: Literal["source", "response_tokens"] | None
    group_values: Callable[[np.ndarray, np.ndarray], np.ndarray]
    share_budget: Callable[[int, np.ndarray], np.ndarray]


@options
class Budget:
    """Number of rows to select: a fraction of all rows of the dataset, or a count.

    Attributes:
        fraction: share in (0, 1], or None.
        count: rows, or None.
    """

    fraction: Share | None = 0.1
    count: PositiveInt | None = None

    @model_validator(mode="after")
    def _check_budget(self) -> "Budget":
        if (self.fraction is None) == (self.count is None):
            raise UserError(
                "give exactly one of fraction and count, such as a fraction of 0.1 and no count, or "
                "a count of 500 rows and a fraction of null",
                arguments=("fraction", "count"),
            )
        return self

    def budget_rows(self, total_rows: int) -> int:
        """Return the budget in rows: fraction · total_rows with halves rounded up, or the count.

        Raises:
            UserError: the budget is no row at all, or more rows than the dataset has.
        """
        row_count = self.count if self.fraction is None else share_of_count(self.fraction, total_rows)
        assert row_count is not None
        if row_count < 1:
            raise UserError(
                f"a share of {self.fraction} of {total_rows} rows is no row; give a larger fraction",
                owner=self,
                arguments=("fraction",),
            )
        if row_count > total_rows:
            raise UserError(
                f"{row_count} rows are more than the dataset's {total_rows}; give a smaller count",
                owner=self,
                arguments=("count",),
            )
        return row_count

    def rows_to_select(self, total_rows: int, available_rows: int) -> int:
        """Return the budget in rows, at most those that can be selected."""
        return min(self.budget_rows(total_rows), available_rows)


def shortfall_warnings(budget_rows: int, selected_rows: int, stopped: str | None) -> list[str]:
    """Warn where fewer rows were selected than the budget has, with the selector's own reason if it has one."""
    if selected_rows >= budget_rows:
        return []
    reason = stopped or ("no more rows can be scored (unscored.parquet says why); mend those rows, or ask for fewer")
    return [f"the budget is {budget_rows} rows and {selected_rows} were selected: {reason}"]


def check_inner_budget(part_name: str, inner_selector: Selector, budget_rows: int, total_rows: int) -> int:
    """Return the budget of a selector that leaves the last word to another, or refuse it.

    Raises:
        UserError: that other one has a different budget.
    """
    inner_rows = inner_selector.budget_rows(total_rows)
    if inner_rows != budget_rows:
        raise UserError(
            f"the selector {part_name} is to select {inner_rows} rows and the whole {budget_rows}; "
            f"leave the budget of {part_name} as it is and give that of the whole",
            owner=inner_selector,
            arguments=("fraction", "count"),
        )
    return budget_rows
