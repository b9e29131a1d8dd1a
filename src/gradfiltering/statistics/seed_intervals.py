r"""Means over seeds, with every source of chance at its own level: seeds, draws within a seed, prompts.

The values are a table of seeds and prompts, \(y_{sp}\), each already the mean over the draws (of the random baseline,
say) within its seed; the estimate is the mean over seeds of the seeds' means. Its variance is that of clustering in
two directions (Cameron, Gelbach and Miller, 2011): by seed, which holds the draws and the adapters, and by prompt,
which all seeds may share; what both count, the single cells, is taken off once. With S seeds the part between seeds
has S − 1 degrees of freedom, and so has the t-distribution here. Where the seeds' means are all the same, the variance
is no smaller than that of independent cells. `scripts/simulate_intervals.py` compares the coverage
of this interval with that of others.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from gradfiltering.statistics.intervals import single_outcome_interval

MIN_SEEDS = 3  # below, nothing is known of the spread between seeds
ROUNDING = 1e-12  # seeds' means that differ by no more are the same


@dataclass(frozen=True)
class SeedEstimate:
    """A mean over seeds.

    Attributes:
        value: mean over seeds of the seeds' means.
        low: lower end of the interval; None with fewer than `MIN_SEEDS` seeds, or where the seeds do not differ at all
            and nothing bounds the values.
        high: upper end.
        p: two-sided p-value of the value that means no difference; None without an interval.
        seeds: number of seeds.
        by_seed: each seed's mean.
        prompts: number of different prompts; None for values that have none.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    seeds: int
    by_seed: tuple[float, ...]
    prompts: int | None = None


def estimate_mean_outcome(
    outcomes_by_seed: Sequence[Sequence[Mapping[Hashable, float]]],
    confidence: float,
    bounds: tuple[float, float] = (-1.0, 1.0),
) -> SeedEstimate:
    """Estimate a mean outcome over seeds, of which 0 means no difference.

    Args:
        outcomes_by_seed: for each seed, and each draw within it, the outcome by prompt. A prompt is the same in all
            seeds that name it alike.
        confidence: probability mass of the interval.
        bounds: lowest and highest outcome; the interval stays between them.

    Raises:
        ValueError: there is no seed, or a seed without an outcome.
    """
    prompts = list(dict.fromkeys(prompt for draws in outcomes_by_seed for draw in draws for prompt in draw))
    if not outcomes_by_seed or any(not any(draws) for draws in outcomes_by_seed):
        raise ValueError("there is no seed, or a seed without an outcome")
    cells = np.full((len(outcomes_by_seed), len(prompts)), np.nan)  # [S, P]
    for row, draws in zip(cells, outcomes_by_seed, strict=True):
        table = np.array([[draw.get(prompt, np.nan) for prompt in prompts] for draw in draws], dtype=float)  # [D, P]
        is_judged = np.isfinite(table)
        judged_counts = is_judged.sum(0)
        np.divide(np.where(is_judged, table, 0).sum(0), judged_counts, out=row, where=judged_counts > 0)
    seed_means = np.nanmean(cells, axis=1)
    if len(cells) < MIN_SEEDS:
        return SeedEstimate(float(seed_means.mean()), None, None, None, len(cells), tuple(seed_means), len(prompts))
    low, high, p_value = (float(value) for value in two_way_interval(cells, confidence))
    judged_values = cells[np.isfinite(cells)]
    if np.ptp(judged_values) == 0:
        # One outcome only was seen, which shows no spread. What is independent are the seeds.
        seen_value = float(judged_values[0])
        low, high = single_outcome_interval(seen_value, len(cells), *bounds, confidence)
        p_value = _single_outcome_p(seen_value, len(cells), bounds)
    value = float(seed_means.mean())
    low, high = max(low, bounds[0]), min(high, bounds[1])
    return SeedEstimate(value, low, high, p_value, len(cells), tuple(seed_means.tolist()), len(prompts))


def estimate_mean_value(seed_values: Sequence[float], confidence: float, null_value: float = 0.0) -> SeedEstimate:
    """Estimate the mean of one number for each seed, such as a difference of held-out losses or an AUC.

    Args:
        seed_values: [S] at least one.
        confidence: probability mass of the interval.
        null_value: the value that means no difference.
    """
    values = np.asarray(seed_values, dtype=float)
    value, by_seed = float(values.mean()), tuple(values.tolist())
    if len(values) < MIN_SEEDS or np.ptp(values) == 0:
        return SeedEstimate(value, None, None, None, len(values), by_seed)
    low, high, p_value = (float(part) for part in two_way_interval(values[:, None] - null_value, confidence))
    return SeedEstimate(value, low + null_value, high + null_value, p_value, len(values), by_seed)


def two_way_interval(cells: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the interval of the mean over seeds of their means, and the p-value of 0.

    Args:
        cells: [..., S, P] values by seed and prompt, NaN where a seed has none of a prompt; S at least 2.
        confidence: probability mass of the interval.

    Returns:
        Lower end, upper end and p-value, [...] each.
    """
    seed_count = cells.shape[-2]
    is_known = np.isfinite(cells)
    cell_counts = is_known.sum(-1, keepdims=True)  # [..., S, 1]
    seed_means = np.where(is_known, cells, 0).sum(-1, keepdims=True) / cell_counts  # [..., S, 1]
    estimate = seed_means[..., 0].mean(-1)  # [...]
    seed_variance = seed_means[..., 0].var(-1, ddof=1) / seed_count
    # A cell's share of the estimate's error: [..., S, P].
    weighted_errors = np.where(is_known, cells - seed_means, 0) / (cell_counts * seed_count)
    prompt_variance = np.square(weighted_errors.sum(-2)).sum(-1)
    cell_variance = np.square(weighted_errors).sum((-1, -2))
    variance = seed_variance + np.maximum(prompt_variance - cell_variance, 0)
    # Counts of a few seeds may coincide by chance, which does not show that seeds never differ. What the prompts show
    # is counted then.
    coincide = np.ptp(seed_means[..., 0], axis=-1) <= ROUNDING
    variance = np.where(coincide, np.maximum(variance, cell_variance), variance)
    standard_error = np.sqrt(variance)
    reach = scipy.stats.t.ppf((1 + confidence) / 2, seed_count - 1) * standard_error
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.where(standard_error > 0, np.abs(estimate) / standard_error, np.inf * np.sign(np.abs(estimate)))
    p_value = np.where(np.isnan(statistic), 1.0, 2 * scipy.stats.t.sf(statistic, seed_count - 1))
    return estimate - reach, estimate + reach, p_value


def _single_outcome_p(outcome: float, count: int, bounds: tuple[float, float]) -> float:
    """Compute the p-value of a mean of 0 where one outcome only was seen: all the rest may lie at the other bound."""
    other_bound = bounds[0] if outcome > 0 else bounds[1]
    if outcome == 0:
        return 1.0
    return float(min(1.0, 2 * (abs(other_bound) / (abs(other_bound) + abs(outcome))) ** count))
