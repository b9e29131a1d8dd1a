"""Intervals and tests for a mean of win (1), tie (0) and loss (-1)."""

import math

import numpy as np
from scipy import stats

POWER = 0.8  # probability with which a difference is to be detected


def percentile_interval(resampled_values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Compute the middle `confidence` of resampled values, [R]."""
    tail_share = (1 - confidence) / 2
    lower_end, upper_end = np.quantile(resampled_values, [tail_share, (1 + confidence) / 2])
    return float(lower_end), float(upper_end)


def bca_interval(
    resampled_values: np.ndarray,
    observed_mean: float,
    outcomes: np.ndarray,
    outcome_counts: np.ndarray,
    confidence: float,
) -> tuple[float, float]:
    """Compute the bias-corrected and accelerated interval of a mean (Efron, 1987).

    Args:
        resampled_values: [R] bootstrap values.
        observed_mean: the mean that was resampled.
        outcomes: [K] values that a prompt may contribute.
        outcome_counts: [K] prompts that contributed each.
        confidence: probability mass of the interval.
    """
    mean_outcome = (outcomes * outcome_counts).sum() / outcome_counts.sum()
    deviations = outcomes - mean_outcome  # [K]
    square_sum = (outcome_counts * deviations**2).sum()
    if square_sum == 0:
        return observed_mean, observed_mean
    # Resampled means take few values, so those equal to the observed one count half, as those of a
    # continuous mean would.
    share_below = (resampled_values < observed_mean).mean()
    share_up_to = (resampled_values <= observed_mean).mean()
    bias_share = (share_below + share_up_to) / 2
    if not 0 < bias_share < 1:  # too few resamples to tell the bias
        return percentile_interval(resampled_values, confidence)
    bias = stats.norm.ppf(bias_share)
    # For a mean the jackknife's skewness is that of the values themselves.
    acceleration = (outcome_counts * deviations**3).sum() / (6 * square_sum**1.5)
    shifted_ends = bias + stats.norm.ppf([(1 - confidence) / 2, (1 + confidence) / 2])  # [2]
    quantile_levels = stats.norm.cdf(bias + shifted_ends / (1 - acceleration * shifted_ends))
    lower_end, upper_end = np.quantile(resampled_values, quantile_levels)
    return float(lower_end), float(upper_end)


def sign_test(win_count: int, loss_count: int) -> float:
    """Compute the two-sided p-value of the exact sign test; 1 when no prompt was decided."""
    decided_count = win_count + loss_count
    return float(stats.binomtest(win_count, decided_count, 0.5).pvalue) if decided_count else 1.0


def detectable_difference(outcomes: np.ndarray, outcome_counts: np.ndarray, confidence: float) -> float | None:
    """Compute the smallest true mean that a two-sided test tells from 0 with power `POWER`.

    Args:
        outcomes: [K] values that a prompt may contribute.
        outcome_counts: [K] prompts that contributed each; they tell the spread.
        confidence: one minus the level of the test.

    Returns:
        The difference; None when the outcomes do not differ, so that their spread is not known.
    """
    total_count = int(outcome_counts.sum())
    mean_outcome = (outcomes * outcome_counts).sum() / total_count
    variance = (outcome_counts * (outcomes - mean_outcome) ** 2).sum() / total_count
    if variance == 0:
        return None
    critical_value = stats.norm.ppf((1 + confidence) / 2) + stats.norm.ppf(POWER)
    return float(critical_value * math.sqrt(variance / total_count))
