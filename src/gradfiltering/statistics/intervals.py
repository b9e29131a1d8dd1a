"""Intervals and tests for a mean of win (1), tie (0) and loss (-1)."""

import math

import numpy as np
import scipy

POWER = 0.8  # probability with which a difference is to be detected


def percentile_interval(resampled_values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Compute the middle `confidence` of resampled values, [R]."""
    tail_share = (1 - confidence) / 2
    lower_end, upper_end = np.quantile(resampled_values, [tail_share, (1 + confidence) / 2])
    return float(lower_end), float(upper_end)


def share_interval(share: float, total_count: int, confidence: float) -> tuple[float, float]:
    """Compute Wilson's score interval (1927) of a share, which is no single point at a share of 0 or 1 either.

    Args:
        share: the share observed, from 0 to 1. A mean of values between 0 and 1 will do, too: such
            values vary no more than the yes and no of the same mean, so that the interval is then
            at least as wide as it needs to be.
        total_count: number of independent values behind it, at least 1.
        confidence: probability mass of the interval.
    """
    from statsmodels.stats.proportion import proportion_confint

    lower_end, upper_end = proportion_confint(share * total_count, total_count, 1 - confidence, method="wilson")
    # At 0 and 1 rounding may leave the end that is known exactly a hair away.
    return 0.0 if share == 0 else float(lower_end), 1.0 if share == 1 else float(upper_end)


def single_outcome_interval(
    outcome: float, total_count: int, lowest_outcome: float, highest_outcome: float, confidence: float
) -> tuple[float, float]:
    r"""Compute the interval of a mean of which only one outcome was ever seen, where a bootstrap gives a point.

    The bound is the exact one of the multinomial: of all distributions under which so many equal
    outcomes have a probability of at least (1 - confidence)/2, the lowest and the highest mean. The
    outcome has under these a probability of at least \(p = ((1 - \text{confidence})/2)^{1/n}\), the
    lower end of Clopper and Pearson (1934) for n of n; what is left may all be the lowest or all the
    highest outcome. For win (1) and loss (-1) the interval holds 0 exactly where the two-sided sign
    test finds no difference. (The simultaneous bounds of Sison and Glaz, 1995, are approximations
    for cells with counts, and too narrow where all but one are empty.)

    Args:
        outcome: the value seen each time.
        total_count: how often it was seen, at least 1.
        lowest_outcome: the lowest value there may be.
        highest_outcome: the highest.
        confidence: probability mass of the interval.
    """
    from statsmodels.stats.proportion import proportion_confint

    least_share, _ = proportion_confint(total_count, total_count, 1 - confidence, method="beta")
    seen_part, unseen_share = float(least_share) * outcome, 1 - float(least_share)
    return seen_part + unseen_share * lowest_outcome, seen_part + unseen_share * highest_outcome


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
        outcome_counts: [K] prompts that contributed each; more than one outcome was seen (see
            `single_outcome_interval` otherwise).
        confidence: probability mass of the interval.
    """
    mean_outcome = (outcomes * outcome_counts).sum() / outcome_counts.sum()
    deviations = outcomes - mean_outcome  # [K]
    square_sum = (outcome_counts * deviations**2).sum()
    # Resampled means take few values, so those equal to the observed one count half, as those of a
    # continuous mean would.
    share_below = (resampled_values < observed_mean).mean()
    share_up_to = (resampled_values <= observed_mean).mean()
    bias_share = (share_below + share_up_to) / 2
    if not 0 < bias_share < 1:  # too few resamples to tell the bias
        return percentile_interval(resampled_values, confidence)
    bias = scipy.stats.norm.ppf(bias_share)
    # For a mean the jackknife's skewness is that of the values themselves.
    acceleration = (outcome_counts * deviations**3).sum() / (6 * square_sum**1.5)
    shifted_ends = bias + scipy.stats.norm.ppf([(1 - confidence) / 2, (1 + confidence) / 2])  # [2]
    quantile_levels = scipy.stats.norm.cdf(bias + shifted_ends / (1 - acceleration * shifted_ends))
    lower_end, upper_end = np.quantile(resampled_values, quantile_levels)
    return float(lower_end), float(upper_end)


def sign_test(win_count: int, loss_count: int) -> float:
    """Compute the two-sided p-value of the exact sign test; 1 when no prompt was decided."""
    decided_count = win_count + loss_count
    return float(scipy.stats.binomtest(win_count, decided_count, 0.5).pvalue) if decided_count else 1.0


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
    critical_value = scipy.stats.norm.ppf((1 + confidence) / 2) + scipy.stats.norm.ppf(POWER)
    return float(critical_value * math.sqrt(variance / total_count))
