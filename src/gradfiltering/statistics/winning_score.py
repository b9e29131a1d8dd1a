"""The pairwise winning score, its intervals, and the difference that could be detected."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradfiltering.statistics.intervals import (
    bca_interval,
    detectable_difference,
    percentile_interval,
    sign_test,
    single_outcome_interval,
)

ALL_SETS = "all"


@dataclass(frozen=True)
class PWS:
    """A pairwise winning score with the counts behind it.

    All but the counts are None when no prompt was judged.

    Attributes:
        value: (wins - losses) / judged + 1, from 0 to 2; 1 = as good as the baseline.
        low: lower end of the bootstrap interval; of the multinomial's bound where all verdicts are
            the same.
        high: upper end of the interval.
        wins: prompts the candidate won.
        ties: prompts that were level.
        losses: prompts the baseline won.
        unparsed: prompts without a verdict. They count neither as judged nor as ties.
        bca_low: lower end of the bias-corrected and accelerated bootstrap interval.
        bca_high: upper end of it.
        sign_p: two-sided p-value of the exact sign test of wins against losses; ties say nothing
            about who is better.
        detectable: the smallest difference from 1 that so many prompts would show as significant
            with a power of 80 %; None also where all verdicts are the same, which tells nothing of
            their spread.
    """

    value: float | None
    low: float | None
    high: float | None
    wins: int
    ties: int
    losses: int
    unparsed: int
    bca_low: float | None = None
    bca_high: float | None = None
    sign_p: float | None = None
    detectable: float | None = None


def pairwise_winning_score(verdicts: Sequence[str], resamples: int, confidence: float, seed: int) -> PWS:
    """Compute PWS of a list of verdicts, with bootstrap intervals over prompts.

    A bootstrap resample draws `judged` prompts with replacement. The score depends only on how many
    wins, ties and losses are drawn, and those counts are multinomial with the observed shares; so
    drawing the counts is exactly that bootstrap. Where all verdicts are the same, every resample is,
    too, and both intervals are the exact bound of the multinomial (`single_outcome_interval`): five
    wins of five give [0.96, 2].

    Args:
        verdicts: one of "win", "tie", "loss", "unparsed" per prompt.
        resamples: bootstrap resamples.
        confidence: probability mass of the interval, between 0 and 1.
        seed: of the bootstrap.

    Raises:
        ValueError: an unknown verdict, or an argument out of range.
    """
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; it must be at least 1")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, both excluded")
    verdict_counts = Counter(verdicts)
    wins, ties, losses, unparsed = (verdict_counts.pop(verdict, 0) for verdict in ("win", "tie", "loss", "unparsed"))
    if verdict_counts:
        unknown_verdict = next(iter(verdict_counts))
        raise ValueError(f"unknown verdict {unknown_verdict!r}; expected win, tie, loss or unparsed")
    judged_count = wins + ties + losses
    if judged_count == 0:
        return PWS(None, None, None, wins, ties, losses, unparsed)
    outcomes = np.array([1.0, 0.0, -1.0])
    outcome_counts = np.array([wins, ties, losses])
    rng = np.random.default_rng(seed)
    drawn_counts = rng.multinomial(judged_count, outcome_counts / judged_count, size=resamples)
    # [R, 3] -> [R]. Whole numbers until here, so that equal scores are equal to the last bit, which
    # BCa counts on.
    drawn_scores = (drawn_counts[:, 0] - drawn_counts[:, 2]) / judged_count + 1
    value = (wins - losses) / judged_count + 1
    if judged_count in outcome_counts:  # every resample would be the same
        low, high = bca_low, bca_high = single_outcome_interval(value, judged_count, 0.0, 2.0, confidence)
    else:
        low, high = percentile_interval(drawn_scores, confidence)
        bca_low, bca_high = bca_interval(drawn_scores, value, outcomes, outcome_counts, confidence)
    return PWS(
        value=value,
        low=low,
        high=high,
        wins=wins,
        ties=ties,
        losses=losses,
        unparsed=unparsed,
        bca_low=bca_low,
        bca_high=bca_high,
        sign_p=sign_test(wins, losses),
        detectable=detectable_difference(outcomes, outcome_counts, confidence),
    )
