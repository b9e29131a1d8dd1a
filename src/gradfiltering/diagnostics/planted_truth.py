"""Comparison of a subset with planted defects, where a dataset has them."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from gradfiltering.diagnostics.limits import DiagnosticLimits, Diagnostics
from gradfiltering.scorers.base import Scores
from gradfiltering.seeding import numpy_rng
from gradfiltering.statistics.intervals import percentile_interval, share_interval, single_outcome_interval


def compare_with_truth(
    row_kinds: Sequence[str] | None,
    selected_ids: Sequence[int],
    scores: Scores | None,
    seed: int,
    limits: DiagnosticLimits,
    set_aside: Collection[int] = (),
) -> Diagnostics:
    """Compare a subset and its scores with the planted kinds, and so do random scores.

    Gives `truth.share` of each kind in the pool and in the subset (with Wilson's interval), and
    `truth.auc` of clean over planted rows: the chance that a clean row scores above a planted one.
    `auc` is empty where no score or no planted, or no clean, row is there to compare.

    Args:
        row_kinds: planted kind of every row of the dataset, None where nothing is known.
        selected_ids: example ids of the subset.
        scores: of the rows that can be scored, or None.
        seed: of the bootstrap and of the random scores.
        limits: bootstrap resamples and confidence.
        set_aside: positions of the rows that are held out, which belong to no pool.
    """
    if row_kinds is None:
        return Diagnostics()
    kinds = np.asarray(row_kinds)
    pool_kinds = np.delete(kinds, list(set_aside))
    selected_kinds = kinds[np.asarray(selected_ids, dtype=np.int64)]
    selected_count = len(selected_kinds)
    kind_shares = {}
    for kind in np.unique(pool_kinds).tolist():
        selected_share = int((selected_kinds == kind).sum()) / selected_count
        low, high = share_interval(selected_share, selected_count, limits.confidence)
        kind_shares[kind] = {
            "pool": float((pool_kinds == kind).mean()),
            "selected": selected_share,
            "low": low,
            "high": high,
        }
    auc_by_scorer: dict[str, Any] = {}
    if scores is not None:
        is_clean = kinds[scores.example_ids] == "clean"
        if is_clean.any() and not is_clean.all():
            random_scores = numpy_rng(seed, "random baseline").random(len(scores.score))
            for name, row_scores in (("scorer", scores.score), ("random", random_scores)):
                auc_rng = numpy_rng(seed, "auc bootstrap")
                auc_by_scorer[name] = auc_interval(row_scores, is_clean, limits, auc_rng)
    return Diagnostics({"truth": {"share": kind_shares, "auc": auc_by_scorer}})


def area_under_curve(row_scores: np.ndarray, is_positive: np.ndarray) -> float:
    """Compute the chance that a positive scores above a negative, ties counted half (ROC AUC)."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(is_positive, row_scores))


def auc_interval(
    row_scores: np.ndarray,
    is_positive: np.ndarray,
    limits: DiagnosticLimits,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Compute the AUC with a bootstrap interval over examples, resampled within each class.

    Where every resample has the same AUC (the classes lie wholly apart, or all scores are equal),
    the interval is `single_outcome_interval` of as many pairs as the smaller class has rows: each
    of these in a pair of its own with a row of the other class gives so many independent outcomes.
    """
    positive_scores, negative_scores = row_scores[is_positive], row_scores[~is_positive]
    positive_count, negative_count = len(positive_scores), len(negative_scores)
    negative_order = np.argsort(negative_scores)
    negative_ranks = np.argsort(negative_order)
    # A positive's position among the sorted negatives is the same in every resample; how often each
    # negative is drawn is not.
    sorted_negatives = negative_scores[negative_order]
    below_positions = np.searchsorted(sorted_negatives, positive_scores, "left")
    up_to_positions = np.searchsorted(sorted_negatives, positive_scores, "right")
    drawn_areas = np.empty(limits.bootstrap)
    for draw_index in range(limits.bootstrap):
        drawn_positives = rng.integers(positive_count, size=positive_count)
        drawn_negatives = negative_ranks[rng.integers(negative_count, size=negative_count)]
        drawn_counts = np.bincount(drawn_negatives, minlength=negative_count)
        counts_before = np.concatenate([[0], drawn_counts.cumsum()])  # [negatives + 1]
        half_wins = counts_before[below_positions] + counts_before[up_to_positions]
        pair_wins = half_wins[drawn_positives].sum() / 2
        drawn_areas[draw_index] = pair_wins / (positive_count * negative_count)
    area = area_under_curve(row_scores, is_positive)
    low, high = percentile_interval(drawn_areas, limits.confidence)
    if area in (0.0, 1.0) or np.ptp(row_scores) == 0:
        pair_count = min(positive_count, negative_count)
        low, high = single_outcome_interval(area, pair_count, 0.0, 1.0, limits.confidence)
    return {"value": area, "low": low, "high": high}
