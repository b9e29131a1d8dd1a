"""SPICE: information-rich rows whose gradients do not pull against each other."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gradfiltering.errors import UserError
from gradfiltering.evidence.base_model import Need
from gradfiltering.scorers.base import Evidence, Scores, mean_projections
from gradfiltering.seeding import numpy_rng
from gradfiltering.selectors.base import Budget, Selection
from gradfiltering.selectors.greedy import lazy_argmax
from gradfiltering.selectors.information import BLOCK, DiagonalInformation, FullInformation, Information

EARLY_STOP = "the gain fell below selector.stop_below of the first; lower it, or set it to null"


@dataclass(frozen=True)
class SpiceSelector(Budget):
    r"""Greedy maximum of \(F(S) = \log\det(I + α \sum_{i ∈ S} g_i g_i^\top)\), penalising conflict (arXiv 2601.23155).

    Each step takes the x of highest \(Δ(x|S) - λ \max(0, -\cos(g_x, \mathrm{mean}_{i ∈ S}\, g_i))\), where
    \(Δ(x|S) = \log(1 + α g_x^\top (I + α \sum_S g g^\top)^{-1} g_x)\). A gain only falls as S grows and the penalty is
    never negative, so an old gain bounds a candidate's value and lazy evaluation is exact for every λ.

    Attributes:
        alpha: α.
        conflict: λ; with 0 over one global pool the choice reaches (1 − 1/e) of the best.
        mode: `full` or `diagonal` (the diagonal of the information matrix alone).
        members: gradients of the `first` member or their `mean`, at the late epoch.
        pool: rows that compete at a time, drawn from the run's seed; None for all at once. What was chosen from earlier
            pools stays chosen and counts in S.
        quota: rows to take from each pool; None for each pool's share of the budget.
        stop_below: leave a pool when its best gain is less than this share of the run's first gain; None never.
    """

    alpha: float
    conflict: float
    mode: str
    members: str
    pool: int | None
    quota: int | None
    stop_below: float | None

    needs: ClassVar[frozenset[Need]] = frozenset({"projections"})

    def __post_init__(self):
        super().__post_init__()
        if self.alpha <= 0 or self.conflict < 0:
            raise UserError(
                f"selector.alpha={self.alpha}, selector.conflict={self.conflict}: give alpha > 0 and conflict >= 0"
            )
        for name, value, known in (
            ("mode", self.mode, ("full", "diagonal")), ("members", self.members, ("first", "mean"))
        ):  # fmt: skip
            if value not in known:
                raise UserError(f"selector.{name}={value}: give {' or '.join(known)}")
        if self.quota is not None and (self.pool is None or not 1 <= self.quota <= self.pool):
            raise UserError(f"selector.quota={self.quota}: give 1 to selector.pool (={self.pool}), or null")
        if self.pool is not None and self.pool < 1:
            raise UserError(f"selector.pool={self.pool}: give a positive number of rows, or null")
        if self.stop_below is not None and not 0 <= self.stop_below <= 1:
            raise UserError(f"selector.stop_below={self.stop_below}: give a share in [0, 1], or null")

    def select(self, evidence: Evidence, total: int, scores: Scores | None) -> Selection:
        """Greedy choice; `selection.parquet` holds gain, ε and conflict of each step."""
        gradients = mean_projections(evidence, self.members)
        budget = self.rows(total, len(gradients))
        kind = FullInformation if self.mode == "full" else DiagonalInformation
        search = _Search(kind(gradients, self.alpha, budget), gradients, self)
        for rows, quota in self.pools(len(gradients), budget, evidence):
            search.choose(rows, min(quota, budget - len(search.order)))
        chosen = evidence.example_ids[search.order]
        stopped = EARLY_STOP if search.stopped and len(chosen) < budget else None
        return Selection(sorted(chosen.tolist()), search.about(), search.trace(chosen), stopped)

    def pools(self, count: int, budget: int, evidence: Evidence) -> list[tuple[np.ndarray, int]]:
        """Rows of each pool, in ascending order, and how many to take from it."""
        if self.pool is None:
            return [(np.arange(count), budget)]
        order = numpy_rng(evidence.seed, "spice pools").permutation(count)
        cuts = [np.sort(order[at : at + self.pool]) for at in range(0, count, self.pool)]
        if self.quota is not None:
            return [(rows, min(self.quota, len(rows))) for rows in cuts]
        reached = [budget * min(at + self.pool, count) // count for at in range(0, count, self.pool)]
        return list(zip(cuts, np.diff([0, *reached]).tolist(), strict=True))


class _Search:
    """The state of a greedy choice: information, sum of the chosen gradients, and what is noted at each step."""

    def __init__(self, information: Information, gradients: np.ndarray, settings: SpiceSelector):
        self.information = information
        self.gradients = gradients
        self.settings = settings
        self.alone = information.gains(np.arange(len(gradients)))  # [N] Δ(x|∅)
        self.lengths = np.sqrt(np.einsum("nk,nk->n", gradients, gradients, dtype=np.float64))
        self.sum = np.zeros(gradients.shape[1])
        self.order: list[int] = []
        self.steps: list[tuple[float, float, float]] = []
        self.stopped = False

    def choose(self, rows: np.ndarray, quota: int) -> None:
        """Takes up to `quota` of `rows`."""
        within, conflict, limit = self.information.restricted(rows), self.settings.conflict, self.settings.stop_below
        gains = within.gains(np.arange(len(rows)))  # as of when each was last looked at
        pull = _Pull(self.gradients[rows], self.lengths[rows], self.sum)
        free = np.ones(len(rows), dtype=bool)

        def evaluate(places: np.ndarray) -> np.ndarray:
            gains[places] = within.gains(places)
            return gains[places] - conflict * np.maximum(0, -self.cosines(rows[places]))

        for _ in range(quota):
            fresh = within.refreshed()
            if fresh is not None:
                gains[:] = fresh
                pull.refresh(self.sum)
            bounds = np.where(free, gains - conflict * pull.least_conflict(self.sum), -np.inf)
            place, value = lazy_argmax(bounds, evaluate)
            gain, row = float(gains[place]), int(rows[place])
            if limit is not None and self.steps and gain < limit * self.steps[0][0]:
                self.stopped = True
                return
            self.steps.append((gain, value, float(self.cosines(np.asarray([row]))[0])))
            self.order.append(row)
            self.information.add(row)
            self.sum += self.gradients[row]
            free[place] = False

    def cosines(self, rows: np.ndarray) -> np.ndarray:
        """[B] cosine of each row's gradient with the mean of the chosen ones; 0 where either is zero."""
        scale = self.lengths[rows] * np.linalg.norm(self.sum)
        product = self.gradients[rows] @ self.sum
        return np.divide(product, scale, out=np.zeros(len(rows)), where=scale > 0)

    def trace(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """The steps: gain, value, ε_t = Δ(x|S) − Δ(x|∅), cosine with the mean of those chosen before."""
        gain, value, cosine = np.asarray(self.steps).reshape(-1, 3).T
        columns = {"gain": gain, "value": value, "epsilon": gain - self.alone[self.order], "cosine": cosine}
        return {"example_id": chosen, **columns}

    def about(self) -> dict[str, Any]:
        """The objective reached and how far the chosen gradients conflict."""
        gain, _, cosine = np.asarray(self.steps).reshape(-1, 3).T
        against = cosine[cosine < 0]
        return {
            "log_determinant": float(gain.sum()),
            "mean_epsilon": float((gain - self.alone[self.order]).mean()),
            "conflict_share": len(against) / max(len(cosine), 1),
            "mean_conflict": float(against.mean()) if len(against) else 0.0,
        }


class _Pull:
    """Bounds on how far rows pull against the sum of the chosen gradients, without looking at their gradients.

    A row's component along the sum, once measured, has since changed by at most the length of what was added.
    """

    def __init__(self, gradients: np.ndarray, lengths: np.ndarray, total: np.ndarray):
        self.gradients = gradients
        self.lengths = lengths
        self.refresh(total)

    def refresh(self, total: np.ndarray) -> None:
        """Measures all rows anew."""
        blocks = range(0, len(self.gradients), BLOCK)
        product = np.concatenate([self.gradients[at : at + BLOCK] @ total for at in blocks])
        self.along = np.divide(product, self.lengths, out=np.full(len(product), np.inf), where=self.lengths > 0)
        self.then = total.copy()

    def least_conflict(self, total: np.ndarray) -> np.ndarray:
        """[N] lower bounds of max(0, -cos)."""
        length = np.linalg.norm(total)
        moved = np.linalg.norm(total - self.then)
        return np.maximum(0, -(self.along + moved)) / length if length > 0 else np.zeros(len(self.along))
