r"""Greedy selection in two rounds: within random shards of the rows, then within the union of what they selected.

Source: GreeDi (Mirzasoleiman et al., NIPS 2013). Of the shards' own selections and that of the second round the best is
returned. Where each shard selects as many rows as the budget k has, a monotone submodular value is at least
\((1 - 1/e)^2 / \min(m, k)\) of the best with m shards, however rows are divided. Rows are divided at random, with
which the expected value is at least \((1 - 1/e) / 2\) of the best (Barbosa et al., ICML 2015).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np

from gradfiltering.seeding import numpy_rng

UNION_SHARE = 2  # budgets that the union has, where it would else be more than half of all rows


class GreedyPicks(Protocol):
    """A greedy selection among some candidates."""

    @property
    def selected(self) -> Sequence[int]:
        """Positions of the selected rows among the candidates, in the order of selection."""
        ...


Picks = TypeVar("Picks", bound=GreedyPicks)
SelectAmong: TypeAlias = Callable[[np.ndarray, int], Picks]


@dataclass(frozen=True)
class TwoRounds(Generic[Picks]):
    """Outcome of two rounds.

    Attributes:
        candidates: positions of the rows that `picks` were made among: the union of the shards' picks, or one shard.
        picks: the best of all picks.
        facts: for the summary.
    """

    candidates: np.ndarray
    picks: Picks
    facts: dict[str, Any]

    @property
    def selected_rows(self) -> np.ndarray:
        """[k] positions of the selected rows, in the order of selection."""
        selected_rows: np.ndarray = self.candidates[np.asarray(self.picks.selected, dtype=np.int64)]
        return selected_rows


def select_in_two_rounds(
    row_count: int,
    budget_rows: int,
    shard_count: int,
    seed: int,
    select_in_shard: SelectAmong[Picks],
    select_in_union: SelectAmong[Picks],
    value_of: Callable[[np.ndarray, Picks], float] | None,
) -> TwoRounds[Picks]:
    """Select in random shards, then among what they selected.

    Each shard selects as many rows as the budget has. Where the union would then be more than half of all rows, shards
    select fewer, so that it has twice the budget; no bound is known for that.

    Args:
        row_count: N.
        budget_rows: k, at most N.
        shard_count: m; at most N shards are made.
        seed: of the run; decides the division.
        select_in_shard: positions of rows [n] in ascending order and how many to select -> picks among them.
        select_in_union: the same for the second round.
        value_of: positions of rows and picks among them -> their value, by which the picks of shards are compared with
            those of the second round; None where the second round's are taken.
    """
    shards = divide_rows(row_count, shard_count, seed)
    takes_budget = sum(min(budget_rows, len(shard)) for shard in shards) <= row_count / 2
    shard_budget = budget_rows if takes_budget else -(-UNION_SHARE * budget_rows // len(shards))
    first_round = [(shard, select_in_shard(shard, min(shard_budget, len(shard)))) for shard in shards]
    union = np.sort(np.concatenate([shard[np.asarray(picks.selected, dtype=np.int64)] for shard, picks in first_round]))
    best_rows, best_picks = union, select_in_union(union, min(budget_rows, len(union)))
    if value_of is not None:
        best_value = value_of(best_rows, best_picks)
        for shard, picks in first_round:
            if len(picks.selected) == budget_rows and (shard_value := value_of(shard, picks)) > best_value:
                best_rows, best_picks, best_value = shard, picks, shard_value
    facts = {"shards": len(shards), "selected_in_shards": len(union), "budget_in_each_shard": takes_budget}
    return TwoRounds(best_rows, best_picks, facts)


def divide_rows(row_count: int, shard_count: int, seed: int) -> list[np.ndarray]:
    """Divide rows at random into parts of equal size, or sizes that differ by one; each part in ascending order."""
    shuffled_rows = numpy_rng(seed, "shards of rows").permutation(row_count)
    return [np.sort(part) for part in np.array_split(shuffled_rows, min(shard_count, row_count))]
