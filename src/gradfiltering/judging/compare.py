"""Several candidates judged on the same prompts against the same opponent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from gradfiltering.errors import UserError
from gradfiltering.judging.bias import OUTCOMES
from gradfiltering.judging.verdicts import read_verdicts
from gradfiltering.seeding import derive_seed
from gradfiltering.statistics.intervals import detectable_difference, percentile_interval

DIFFERENCES = np.array([-2, -1, 0, 1, 2])


@dataclass(frozen=True)
class Comparison:
    """How two candidates differ.

    Attributes:
        one: name of the first.
        other: name of the second.
        prompts: judged for both.
        difference: PWS of the first minus PWS of the second, over these.
        low: lower end of the paired bootstrap interval.
        high: upper end of it.
        p: two-sided p-value of the paired bootstrap, of no difference.
        p_holm: the same after Holm's correction for all comparisons made.
        detectable: the smallest difference that so many prompts would show with a power of 80 %; None when the two
            never differ.
    """

    one: str
    other: str
    prompts: int
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    detectable: float | None


def compare_candidates(
    outcomes: Mapping[str, Mapping[tuple[str, str], int]], resamples: int, confidence: float, seed: int
) -> list[Comparison]:
    """Every pair of candidates, over the prompts judged for both.

    A paired resample draws prompts with both candidates' outcomes. The difference depends only on how often each of its
    five values is drawn, so the counts are drawn instead, which is the same bootstrap.

    Args:
        outcomes: by candidate, 1, 0 or -1 for each prompt (set, id) that was judged.
        resamples: bootstrap resamples.
        confidence: probability mass of the intervals.
        seed: of the bootstrap.

    Raises:
        UserError: two candidates have no prompt in common.
    """
    found = []
    for one, other in combinations(outcomes, 2):
        shared = [prompt for prompt in outcomes[one] if prompt in outcomes[other]]
        if not shared:
            raise UserError(f"{one} and {other} have no judged prompt in common; judge both on the same prompts")
        differences = [outcomes[one][prompt] - outcomes[other][prompt] for prompt in shared]
        counts = np.array([differences.count(value) for value in DIFFERENCES.tolist()])
        drawn = np.random.default_rng(derive_seed(seed, "compare", one, other)).multinomial(
            len(shared), counts / len(shared), size=resamples
        )  # [R, 5]
        sums, observed = drawn @ DIFFERENCES, int(counts @ DIFFERENCES)
        low, high = percentile_interval(sums / len(shared), confidence)
        # Under no difference the resamples would lie around 0 as they lie around what was observed.
        p = (1 + int((np.abs(sums - observed) >= abs(observed)).sum())) / (1 + resamples)
        detectable = detectable_difference(DIFFERENCES, counts, confidence)
        found.append(Comparison(one, other, len(shared), observed / len(shared), low, high, p, p, detectable))
    corrected = holm([comparison.p for comparison in found])
    return [Comparison(**{**vars(comparison), "p_holm": p}) for comparison, p in zip(found, corrected, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): the chance of any false finding stays below the level."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = highest
    return corrected


def read_outcomes(files: Mapping[str, Path], against: str) -> dict[str, dict[tuple[str, str], int]]:
    """Outcomes of several runs' candidates against one opponent, first judgings only.

    Args:
        files: `verdicts.jsonl` by the name its candidate shall have.
        against: the opponent.

    Raises:
        UserError: a file has no verdict against this opponent.
    """
    table = {}
    for name, file in files.items():
        verdicts = [verdict for verdict in read_verdicts(file) if verdict.repeat == 0]
        table[name] = {
            (verdict.prompt_set, verdict.prompt_id): OUTCOMES[verdict.verdict]
            for verdict in verdicts
            if verdict.against == against and verdict.verdict in OUTCOMES
        }
        if not table[name]:
            known = ", ".join(sorted({verdict.against for verdict in verdicts})) or "none"
            raise UserError(f"{file}: no judged verdict against {against!r} (opponents: {known}); give --against NAME")
    return table
