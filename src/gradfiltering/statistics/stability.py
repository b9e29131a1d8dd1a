"""Stability of a selection under other members or another snapshot, from scores alone."""

from collections.abc import Callable

import numpy as np
import scipy

from gradfiltering.statistics.rank_correlation import spearman_correlation

MIN_MEMBERS = 3  # of two members every resample that holds both is the ensemble itself


def select_top(row_scores: np.ndarray, row_count: int) -> np.ndarray:
    """Mark the highest scores, ties by position; rows without a score (NaN) are never marked.

    Args:
        row_scores: [N] float64.
        row_count: rows to mark.

    Returns:
        [N] bool.
    """
    scored_rows = np.flatnonzero(np.isfinite(row_scores))
    best_rows = scored_rows[np.lexsort((scored_rows, -row_scores[scored_rows]))][:row_count]
    is_selected = np.zeros(len(row_scores), dtype=bool)
    is_selected[best_rows] = True
    return is_selected


def jaccard_overlap(first_scores: np.ndarray, second_scores: np.ndarray, row_count: int) -> float:
    """Compute the Jaccard index of the best rows by two scores, [N] each; 1 where neither scores."""
    first_top = select_top(first_scores, row_count)
    second_top = select_top(second_scores, row_count)
    union_size = int((first_top | second_top).sum())
    return int((first_top & second_top).sum()) / union_size if union_size else 1.0


def score_correlation(first_scores: np.ndarray, second_scores: np.ndarray) -> float:
    """Compute Spearman's correlation over the rows that both score.

    Returns:
        1 where the ranks are equal, 0 where a side does not vary.
    """
    in_both = np.isfinite(first_scores) & np.isfinite(second_scores)
    first_values, second_values = first_scores[in_both], second_scores[in_both]
    if np.array_equal(scipy.stats.rankdata(first_values), scipy.stats.rankdata(second_values)):
        return 1.0
    return spearman_correlation(first_values, second_values) or 0.0


def draw_members(rng: np.random.Generator, member_count: int) -> np.ndarray:
    """Draw M of M members with replacement; positions, [M] int64.

    A draw of one member over and over is repeated, since members that cannot disagree have no variance.
    """
    assert member_count > 1
    while True:
        drawn_members = rng.integers(member_count, size=member_count)
        if np.ptp(drawn_members) > 0:
            return drawn_members


def expected_overlap(
    score_members: Callable[[np.ndarray], np.ndarray],
    member_count: int,
    row_count: int,
    resamples: int,
    rng: np.random.Generator,
) -> float:
    """Compute the mean overlap of an ensemble's best rows with those of resampled ensembles.

    Efron's bootstrap over members.

    Args:
        score_members: gives [N] scores by the members at some positions, [M] int64.
        member_count: M, at least `MIN_MEMBERS`.
        row_count: rows to select.
        resamples: ensembles to draw.
        rng: draws them.

    Returns:
        Mean Jaccard index.
    """
    assert member_count >= MIN_MEMBERS
    ensemble_scores = score_members(np.arange(member_count))
    overlaps = [
        jaccard_overlap(ensemble_scores, score_members(np.sort(draw_members(rng, member_count))), row_count)
        for _ in range(resamples)
    ]
    return float(np.mean(overlaps))
