"""Correlation of ranks."""

import numpy as np
from scipy.stats import spearmanr

MIN_VALUES = 3


def spearman_correlation(first_values: np.ndarray, second_values: np.ndarray) -> float | None:
    """Compute Spearman's rank correlation of [N] and [N]; None where a side does not vary."""
    if len(first_values) < MIN_VALUES or np.ptp(first_values) == 0 or np.ptp(second_values) == 0:
        return None
    return float(spearmanr(first_values, second_values).statistic)
