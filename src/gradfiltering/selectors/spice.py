"""SPICE: information-rich rows whose gradients do not pull against each other."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from gradfiltering.errors import UserError
from gradfiltering.options import NonNegativeFloat, PositiveFloat, PositiveInt, Probability, model_validator, options
from gradfiltering.requests import Evidence, Projections, Request
from gradfiltering.scorers.base import Scores
from gradfiltering.seeding import numpy_rng
from gradfiltering.selectors.base import Budget, Selection
from gradfiltering.selectors.greedy import lazy_argmax
from gradfiltering.selectors.information import (
    BLOCK_ROWS,
    DiagonalInformation,
    FullInformation,
    Information,
)
from gradfiltering.selectors.two_rounds import TwoRounds, select_in_two_rounds

EARLY_STOP = "the gain fell below the share stop_below of the first; lower it, or set it to null"


@options
class SpiceSelector(Budget):
    r"""Greedy maximum of \(F(S) = \log\det(I + α \sum_{i ∈ S} g_i g_i^\top)\), penalising conflict.

    Source: arXiv 2601.23155. Each step takes the x of highest
    \(Δ(x|S) - λ \max(0, -\cos(g_x, \mathrm{mean}_{i ∈ S}\, g_i))\), where
    \(Δ(x|S) = \log(1 + α g_x^\top (I + α \sum_S g g^\top)^{-1} g_x)\). A gain only falls as S grows
    and the penalty is never negative, so an old gain bounds a candidate's value and lazy evaluation
    is exact for every λ.

    Attributes:
        alpha: α.
        conflict: λ; with 0 over one global pool the selection reaches (1 − 1/e) of the best.
        mode: `full` or `diagonal` (the diagonal of the information matrix alone).
        members: gradients of the `first` member or their `mean`, at the late snapshot.
        pool: rows that compete at a time, drawn by the run's seed; None for all at once. Rows
            selected from earlier pools stay selected and count in S.
        quota: rows to take from each pool; None for each pool's share of the budget.
        stop_below: leave a pool when its best gain is less than this share of the run's first gain;
            None never.
        shards: random parts of the rows, in each of which a first round selects; a second selects among their
            selections. 1 for one round over all rows.
    """

    alpha: PositiveFloat = 1.0
    conflict: NonNegativeFloat = 0.1
    mode: Literal["full", "diagonal"] = "full"
    members: Literal["first", "mean"] = "first"
    pool: PositiveInt | None = None
    quota: PositiveInt | None = None
    stop_below: Probability | None = None
    shards: PositiveInt = 1

    uses_scores: ClassVar[bool] = False

    @property
    def projections_request(self) -> Projections:
        """Projections of the members that are read, and of no more."""
        return Projections(members=1 if self.members == "first" else None)

    @property
    def requests(self) -> frozenset[Request[Any]]:
        """Projections at the late snapshot."""
        return frozenset({self.projections_request})

    @model_validator(mode="after")
    def _check_quota(self) -> "SpiceSelector":
        if self.quota is not None and (self.pool is None or self.quota > self.pool):
            raise UserError(
                "a quota is at most the rows of a pool, and needs pools",
                arguments=("quota", "pool"),
            )
        if self.shards > 1 and self.pool is not None:
            raise UserError(
                "rows are selected in pools or in shards; give one of them, or one shard",
                arguments=("shards", "pool"),
            )
        return self

    def select(self, evidence: Evidence, total_rows: int, scores: Scores | None) -> Selection:
        """Select greedily.

        `selection.parquet` holds `example_id`, `gain`, `value`, `epsilon` and `cosine` of each step.
        """
        projections = evidence.get(self.projections_request)  # [M, N, K]
        gradients = projections[0] if len(projections) == 1 else projections.mean(axis=0, dtype=np.float32)
        row_count = self.rows_to_select(total_rows, len(gradients))
        if self.shards == 1:
            search = self._search(gradients, row_count)
            for pool_rows, quota in self.draw_pools(len(gradients), row_count, evidence.seed):
                search.select_from(pool_rows, min(quota, row_count - len(search.selected)))
            picks = search.list_picks()
            selected_rows, round_facts = np.asarray(picks.selected, dtype=np.int64), {}
        else:
            two_rounds = self._select_in_two_rounds(gradients, row_count, evidence.seed)
            picks, selected_rows, round_facts = two_rounds.picks, two_rounds.selected_rows, two_rounds.facts
        selected_ids = evidence.example_ids[selected_rows]
        stopped = EARLY_STOP if picks.stopped and len(selected_ids) < row_count else None
        facts = {**picks.summary(), **round_facts}
        return Selection(sorted(selected_ids.tolist()), facts, picks.trace(selected_ids), stopped)

    def _search(self, gradients: np.ndarray, max_rows: int) -> "_Search":
        information_class = FullInformation if self.mode == "full" else DiagonalInformation
        return _Search(information_class(gradients, self.alpha, max_rows), gradients, self)

    def _select_in_two_rounds(self, gradients: np.ndarray, row_count: int, seed: int) -> TwoRounds["SpicePicks"]:
        """Select in shards, then among their selections; with a penalty of conflicts no bound is known."""

        def select_among(row_indices: np.ndarray, count: int) -> SpicePicks:
            search = self._search(gradients[row_indices], count)
            search.select_from(np.arange(len(row_indices)), count)
            return search.list_picks()

        def log_determinant(row_indices: np.ndarray, picks: SpicePicks) -> float:
            return float(picks.summary()["log_determinant"])

        value_of = None if self.conflict else log_determinant
        return select_in_two_rounds(len(gradients), row_count, self.shards, seed, select_among, select_among, value_of)

    def draw_pools(self, row_count: int, budget_rows: int, seed: int) -> list[tuple[np.ndarray, int]]:
        """Return the rows of each pool, in ascending order, and how many to take from it."""
        if self.pool is None:
            return [(np.arange(row_count), budget_rows)]
        shuffled_rows = numpy_rng(seed, "spice pools").permutation(row_count)
        starts = range(0, row_count, self.pool)
        pools = [np.sort(shuffled_rows[start : start + self.pool]) for start in starts]
        if self.quota is not None:
            return [(pool_rows, min(self.quota, len(pool_rows))) for pool_rows in pools]
        pool_ends = [min(start + self.pool, row_count) for start in starts]
        reached = [budget_rows * pool_end // row_count for pool_end in pool_ends]
        return list(zip(pools, np.diff([0, *reached]).tolist(), strict=True))


@dataclass(frozen=True)
class SpicePicks:
    """A greedy selection among some candidates, step by step.

    Attributes:
        selected: positions among the candidates, in the order of selection.
        steps: [k, 3] gain, value and cosine of each step.
        first_gains: [k] Δ(x|∅) of the selected rows.
        stopped: True where the gain fell below the least one.
    """

    selected: list[int]
    steps: np.ndarray
    first_gains: np.ndarray
    stopped: bool

    def trace(self, selected_ids: np.ndarray) -> dict[str, np.ndarray]:
        """Return gain, value, ε_t = Δ(x|S) − Δ(x|∅) and cosine of each step.

        The cosine is with the mean of the rows selected before.
        """
        gain, value, cosine = self.steps.T
        return {
            "example_id": selected_ids,
            "gain": gain,
            "value": value,
            "epsilon": gain - self.first_gains,
            "cosine": cosine,
        }

    def summary(self) -> dict[str, Any]:
        """Return the objective reached and how far the selected gradients conflict."""
        gain, _, cosine = self.steps.T
        conflicting = cosine[cosine < 0]
        return {
            "log_determinant": float(gain.sum()),
            "mean_epsilon": float((gain - self.first_gains).mean()),
            "conflict_share": len(conflicting) / max(len(cosine), 1),
            "mean_conflict": float(conflicting.mean()) if len(conflicting) else 0.0,
        }


class _Search:
    """State of a greedy search: information, sum of the selected gradients, and its steps."""

    def __init__(self, information: Information, gradients: np.ndarray, settings: SpiceSelector):
        self.information = information
        self.gradients = gradients
        self.settings = settings
        self.first_gains = information.gains(np.arange(len(gradients)))  # [N] Δ(x|∅)
        squared_lengths = np.einsum("nk,nk->n", gradients, gradients, dtype=np.float64)
        self.lengths = np.sqrt(squared_lengths)
        self.gradient_sum = np.zeros(gradients.shape[1])
        self.selected: list[int] = []
        self.steps: list[tuple[float, float, float]] = []  # gain, value, cosine
        self.stopped = False

    def select_from(self, pool_rows: np.ndarray, quota: int) -> None:
        """Select up to `quota` of the rows of a pool."""
        conflict_weight, stop_share = self.settings.conflict, self.settings.stop_below
        pool_information = self.information.restrict_to(pool_rows)
        # [n] gains as of each candidate's last evaluation
        gains = pool_information.gains(np.arange(len(pool_rows)))
        takes_all = len(pool_rows) == len(self.gradients)  # then no copy is made
        pool_gradients = self.gradients if takes_all else self.gradients[pool_rows]
        bounds = _ConflictBounds(pool_gradients, self.lengths[pool_rows], self.gradient_sum)
        is_free = np.ones(len(pool_rows), dtype=bool)

        def evaluate(candidates: np.ndarray) -> np.ndarray:
            gains[candidates] = pool_information.gains(candidates)
            conflicts = np.maximum(0, -self.cosines(pool_rows[candidates]))
            values: np.ndarray = gains[candidates] - conflict_weight * conflicts
            return values

        for _ in range(quota):
            refreshed_gains = pool_information.refreshed_gains()
            if refreshed_gains is not None:
                gains[:] = refreshed_gains
                bounds.refresh(self.gradient_sum)
            least_conflicts = bounds.least_conflicts(self.gradient_sum)
            value_bounds = np.where(is_free, gains - conflict_weight * least_conflicts, -np.inf)
            candidate, value = lazy_argmax(value_bounds, evaluate)
            gain, row_index = float(gains[candidate]), int(pool_rows[candidate])
            if stop_share is not None and self.steps and gain < stop_share * self.steps[0][0]:
                self.stopped = True
                return
            cosine = float(self.cosines(np.asarray([row_index]))[0])
            self.steps.append((gain, value, cosine))
            self.selected.append(row_index)
            self.information.add_row(row_index)
            self.gradient_sum += self.gradients[row_index]
            is_free[candidate] = False

    def cosines(self, row_indices: np.ndarray) -> np.ndarray:
        """[B] cosine of each row's gradient with the selected rows' mean; 0 where either is zero."""
        lengths = self.lengths[row_indices] * np.linalg.norm(self.gradient_sum)
        products = self.gradients[row_indices] @ self.gradient_sum
        cosines: np.ndarray = np.divide(products, lengths, out=np.zeros(len(row_indices)), where=lengths > 0)
        return cosines

    def list_picks(self) -> SpicePicks:
        """Return what was selected, without the gradients that it was selected from."""
        return SpicePicks(
            self.selected, np.asarray(self.steps).reshape(-1, 3), self.first_gains[self.selected], self.stopped
        )


class _ConflictBounds:
    """Lower bounds of how far rows pull against the selected gradients, without new products.

    A row's component along the sum, once measured, has since changed by at most the length of what
    was added.
    """

    def __init__(self, gradients: np.ndarray, lengths: np.ndarray, gradient_sum: np.ndarray):
        self.gradients = gradients
        self.lengths = lengths
        self.refresh(gradient_sum)

    def refresh(self, gradient_sum: np.ndarray) -> None:
        """Measure all rows anew."""
        starts = range(0, len(self.gradients), BLOCK_ROWS)
        blocks = [self.gradients[start : start + BLOCK_ROWS] @ gradient_sum for start in starts]
        products, infinite = np.concatenate(blocks), np.full(len(self.gradients), np.inf)
        self.components = np.divide(products, self.lengths, out=infinite, where=self.lengths > 0)
        self.measured_sum = gradient_sum.copy()

    def least_conflicts(self, gradient_sum: np.ndarray) -> np.ndarray:
        """[N] lower bounds of max(0, -cos)."""
        sum_length = np.linalg.norm(gradient_sum)
        if not sum_length > 0:
            return np.zeros(len(self.components))
        added_length = np.linalg.norm(gradient_sum - self.measured_sum)
        least_conflicts: np.ndarray = np.maximum(0, -(self.components + added_length)) / sum_length
        return least_conflicts
