"""Intervals and tests for a mean of win (1), tie (0) and loss (-1)."""

import math

import numpy as np
from scipy import stats

POWER = 0.8  # with which a difference is to be found


def percentile_interval(resampled: np.ndarray, confidence: float) -> tuple[float, float]:
    """The middle `confidence` of resampled values [R]."""
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def bca_interval(
    resampled: np.ndarray, value: float, outcomes: np.ndarray, counts: np.ndarray, confidence: float
) -> tuple[float, float]:
    """The bias-corrected and accelerated interval of a mean (Efron, 1987), from counts of its possible outcomes.

    Args:
        resampled: [R] bootstrap values.
        value: the observed one.
        outcomes: [K] what a prompt may contribute.
        counts: [K] how many prompts contributed it.
        confidence: probability mass of the interval.
    """
    deviations = outcomes - (outcomes * counts).sum() / counts.sum()  # [K]
    squares = (counts * deviations**2).sum()
    if squares == 0:
        return value, value
    # Resampled means take few values, so those equal to the observed one count half (as a continuous one would).
    below = ((resampled < value).mean() + (resampled <= value).mean()) / 2
    if not 0 < below < 1:  # too few resamples to tell the bias
        return percentile_interval(resampled, confidence)
    bias = stats.norm.ppf(below)
    # For a mean the jackknife's skewness is that of the values themselves.
    acceleration = (counts * deviations**3).sum() / (6 * squares**1.5)
    ends = bias + stats.norm.ppf([(1 - confidence) / 2, (1 + confidence) / 2])  # [2]
    levels = stats.norm.cdf(bias + ends / (1 - acceleration * ends))
    low, high = np.quantile(resampled, levels)
    return float(low), float(high)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of the exact sign test; 1 when nothing was decided."""
    return float(stats.binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0


def detectable_difference(outcomes: np.ndarray, counts: np.ndarray, confidence: float) -> float | None:
    """The smallest true mean that a two-sided test at level 1 - confidence finds to differ from 0, with power `POWER`.

    Args:
        outcomes: [K] what a prompt may contribute.
        counts: [K] how many prompts contributed it; they tell the spread.
        confidence: one minus the level of the test.

    Returns:
        The difference; None when the outcomes do not differ, so that their spread is not known.
    """
    total = int(counts.sum())
    mean = (outcomes * counts).sum() / total
    variance = (counts * (outcomes - mean) ** 2).sum() / total
    if variance == 0:
        return None
    return float((stats.norm.ppf((1 + confidence) / 2) + stats.norm.ppf(POWER)) * math.sqrt(variance / total))
