"""How much a choice of rows would change with other members, or with another epoch: plain arithmetic on scores."""

from collections.abc import Callable

import numpy as np
from scipy.stats import rankdata

FEWEST = 3  # of two members every resample that holds both is the ensemble itself


def top(score: np.ndarray, count: int) -> np.ndarray:
    """[N] bool: the `count` highest scores, ties by position; a row without a score (NaN) is never among them."""
    known = np.flatnonzero(np.isfinite(score))
    best = known[np.lexsort((known, -score[known]))][:count]
    chosen = np.zeros(len(score), dtype=bool)
    chosen[best] = True
    return chosen


def overlap(one: np.ndarray, other: np.ndarray, count: int) -> float:
    """Jaccard index of the `count` best rows by two scores, each [N]; 1 where neither scores any row."""
    first, second = top(one, count), top(other, count)
    either = int((first | second).sum())
    return int((first & second).sum()) / either if either else 1.0


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's correlation over the rows that both score; 1 where the scores are equal, 0 where one is constant."""
    both = np.isfinite(one) & np.isfinite(other)
    first, second = rankdata(one[both]), rankdata(other[both])
    if np.array_equal(first, second):
        return 1.0
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def expected_overlap(
    score: Callable[[np.ndarray], np.ndarray], members: int, count: int, resamples: int, rng: np.random.Generator
) -> float:
    """Mean Jaccard index of the best rows by the ensemble and by ensembles resampled from it (Efron's bootstrap).

    A resample that is one member over and over is drawn again, since members that cannot disagree have no variance.

    Args:
        score: gives [N] scores by the members at some positions, [M] int64.
        members: M, at least `FEWEST`.
        count: of rows to choose.
        resamples: how many ensembles are drawn.
        rng: draws them.
    """
    assert members >= FEWEST
    whole = score(np.arange(members))
    found: list[float] = []
    while len(found) < resamples:
        drawn = rng.integers(members, size=members)
        if np.ptp(drawn) > 0:
            found.append(overlap(whole, score(np.sort(drawn)), count))
    return float(np.mean(found))
