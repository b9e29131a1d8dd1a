"""Comparison of several candidates on the same prompts: paired bootstrap, Holm's correction."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from gradfiltering.errors import UserError
from gradfiltering.seeding import derive_seed
from gradfiltering.statistics.intervals import detectable_difference, percentile_interval, single_outcome_interval

DIFFERENCES = np.array([-2, -1, 0, 1, 2])


@dataclass(frozen=True)
class Comparison:
    """Difference of two candidates' pairwise winning scores.

    Attributes:
        first_name: name of the first candidate.
        second_name: name of the second.
        prompts: prompts judged for both.
        difference: PWS of the first minus PWS of the second, over these.
        low: lower end of the paired bootstrap interval; where all prompts show the same difference,
            of the multinomial's bound (`single_outcome_interval`).
        high: upper end of it.
        p: two-sided p-value of the paired bootstrap, of no difference; where all prompts show the
            same difference, that of the exact test to which this bound belongs.
        p_holm: the same after Holm's correction for all comparisons made.
        detectable: the smallest difference that so many prompts would show with a power of 80 %;
            None when the two never differ.
    """

    first_name: str
    second_name: str
    prompts: int
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    detectable: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the fields under the names they have in files."""
        fields = asdict(self)
        return {"one": fields.pop("first_name"), "other": fields.pop("second_name"), **fields}


def compare_candidates(
    outcomes: Mapping[str, Mapping[Hashable, int]], resamples: int, confidence: float, seed: int
) -> list[Comparison]:
    """Compare every pair of candidates over the prompts judged for both.

    A paired resample draws prompts with both candidates' outcomes. The difference depends only on
    how often each of its five values is drawn, so the counts are drawn instead, which is the same
    bootstrap.

    Args:
        outcomes: by candidate, 1, 0 or -1 for each prompt that was judged.
        resamples: bootstrap resamples.
        confidence: probability mass of the intervals.
        seed: seed of the bootstrap.

    Raises:
        UserError: two candidates have no prompt in common.
    """
    comparisons = [
        _compare_pair(first_name, second_name, outcomes, resamples, confidence, seed)
        for first_name, second_name in combinations(outcomes, 2)
    ]
    corrected = correct_by_holm([comparison.p for comparison in comparisons])
    return [replace(comparison, p_holm=p_holm) for comparison, p_holm in zip(comparisons, corrected, strict=True)]


def correct_by_holm(p_values: Sequence[float]) -> list[float]:
    """Apply Holm's step-down correction (1979) to p-values of several tests."""
    from statsmodels.stats.multitest import multipletests

    return multipletests(p_values, method="holm")[1].tolist() if p_values else []


def _compare_pair(
    first_name: str,
    second_name: str,
    outcomes: Mapping[str, Mapping[Hashable, int]],
    resamples: int,
    confidence: float,
    seed: int,
) -> Comparison:
    first_outcomes, second_outcomes = outcomes[first_name], outcomes[second_name]
    shared_prompts = [prompt for prompt in first_outcomes if prompt in second_outcomes]
    prompt_count = len(shared_prompts)
    if not shared_prompts:
        raise UserError(
            f"{first_name} and {second_name} have no judged prompt in common; judge both on the same prompts"
        )
    differences = [first_outcomes[prompt] - second_outcomes[prompt] for prompt in shared_prompts]
    counts = np.array([differences.count(value) for value in DIFFERENCES.tolist()])
    random = np.random.default_rng(derive_seed(seed, "compare", first_name, second_name))
    drawn_counts = random.multinomial(prompt_count, counts / prompt_count, size=resamples)  # [R, 5]
    drawn_sums, observed_sum = drawn_counts @ DIFFERENCES, int(counts @ DIFFERENCES)
    low, high = percentile_interval(drawn_sums / prompt_count, confidence)
    # Under no difference the resamples would lie around 0 as they lie around the observed sum.
    extreme_count = int((np.abs(drawn_sums - observed_sum) >= abs(observed_sum)).sum())
    p_value = (1 + extreme_count) / (1 + resamples)
    if prompt_count in counts:  # every resample was the same
        lowest, highest = float(DIFFERENCES[0]), float(DIFFERENCES[-1])
        seen_difference = observed_sum / prompt_count
        low, high = single_outcome_interval(seen_difference, prompt_count, lowest, highest, confidence)
        # Under a mean of 0 a difference d has a probability of at most 2 / (2 + |d|): the rest would all be 2 the
        # other way.
        p_value = min(1.0, 2 * (highest / (highest + abs(seen_difference))) ** prompt_count)
    return Comparison(
        first_name=first_name,
        second_name=second_name,
        prompts=prompt_count,
        difference=observed_sum / prompt_count,
        low=low,
        high=high,
        p=p_value,
        p_holm=p_value,
        detectable=detectable_difference(DIFFERENCES, counts, confidence),
    )
