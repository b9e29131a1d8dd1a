"""Correlation of ranks."""

import numpy as np
import scipy

MIN_VALUES = 3


def spearman_correlation(first_values: np.ndarray, second_values: np.ndarray) -> float | None:
    """Compute Spearman's rank correlation of [N] and [N].

    Returns:
        The correlation; None where there are fewer than three values, where a side does not vary, or where one holds
        NaN, which has no rank.
    """
    if len(first_values) < MIN_VALUES or np.isnan([first_values, second_values]).any():
        return None
    if any((values == values[0]).all() for values in (first_values, second_values)):
        return None
    return float(scipy.stats.spearmanr(first_values, second_values).statistic)
