"""The verdict on a subset: use it, do not use it, no difference shown, or not tested.

The subset is compared with as many random rows, in two measures: the held-out loss of the model that was trained on it,
and the pairwise winning score (PWS) of that model's answers. The loss is a mean over rows. Where the mean over tokens
shows the reverse, the difference is one between short and long answers, and counts neither for nor against the subset.
docs/verdict.md states the rule in words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy

from gradfiltering.statistics.intervals import POWER
from gradfiltering.statistics.seed_intervals import MIN_SEEDS, SeedEstimate

VerdictWord = Literal["use it", "do not use it", "no difference shown", "not tested"]
EVEN_LOSS, EVEN_SCORE = 0.0, 1.0
MOST_SEEDS = 20  # that a test is planned for


@dataclass(frozen=True)
class DiagnosticCount:
    """A diagnostic and the number of seeds in which it failed.

    Attributes:
        name: of the diagnostic.
        forbids_use: True where a subset that fails it is not to be used.
        seeds: in which it failed, at least 1.
    """

    name: str
    forbids_use: bool
    seeds: int


@dataclass(frozen=True)
class VerdictEvidence:
    """Everything that a verdict rests on.

    Attributes:
        seeds: number of seeds that the setting was run with.
        loss_difference: held-out loss minus that of random rows, nats per token; None where it was not measured.
        winning_score: PWS against random rows; None where nothing was judged by a judge that is to be relied on.
        failed: diagnostics that failed in any of the seeds.
        settings: number of settings that were tested side by side, this one included.
        is_left_by_holm: False where the advantage in both measures is not left of as many settings after Holm's
            correction.
        token_loss_difference: the loss difference with each held-out token weighing the same instead of each row; None
            where it was not measured, as by earlier versions.
    """

    seeds: int
    loss_difference: SeedEstimate | None
    winning_score: SeedEstimate | None
    failed: Sequence[DiagnosticCount] = ()
    settings: int = 1
    is_left_by_holm: bool = True
    token_loss_difference: SeedEstimate | None = None

    @property
    def forbidding(self) -> list[DiagnosticCount]:
        """Diagnostics that forbid the use of the subset: those that failed in more than half of the seeds."""
        return [count for count in self.failed if count.forbids_use and 2 * count.seeds > self.seeds]

    @property
    def is_tested(self) -> bool:
        """True where both measures have as many seeds as an interval needs."""
        return all(
            estimate is not None and estimate.seeds >= MIN_SEEDS
            for estimate in (self.loss_difference, self.winning_score)
        )

    @property
    def is_worse(self) -> bool:
        """True where one of the measures is worse than that of random rows by its whole interval."""
        is_loss_worse = _lies_above(self.loss_difference, EVEN_LOSS) and not self.is_loss_contradicted
        return is_loss_worse or _lies_below(self.winning_score, EVEN_SCORE)

    @property
    def is_better(self) -> bool:
        """True where both measures are better than those of random rows by their whole intervals."""
        is_loss_better = _lies_below(self.loss_difference, EVEN_LOSS) and not self.is_loss_contradicted
        return is_loss_better and _lies_above(self.winning_score, EVEN_SCORE)

    @property
    def is_loss_contradicted(self) -> bool:
        """True where the loss by rows and the loss by tokens differ from random rows' in opposite directions.

        Both by their whole intervals.
        """
        rows, tokens = self.loss_difference, self.token_loss_difference
        return (_lies_above(rows, EVEN_LOSS) and _lies_below(tokens, EVEN_LOSS)) or (
            _lies_below(rows, EVEN_LOSS) and _lies_above(tokens, EVEN_LOSS)
        )


def reach_verdict(evidence: VerdictEvidence) -> VerdictWord:
    """Reach the verdict, by the first of these rules that applies.

    1. A diagnostic that forbids it failed in more than half of the seeds, or one of the two measures is worse than that
       of random rows by its whole interval: do not use it. Here and below, a loss that the mean over tokens contradicts
       is neither worse nor better.
    2. One of the measures was taken with fewer than three seeds, or not at all: not tested.
    3. Both measures are better by their whole intervals, no diagnostic failed in any seed, and the advantage is left
       after Holm's correction over the settings tested beside this one: use it.
    4. No difference shown.
    """
    if evidence.forbidding or evidence.is_worse:
        return "do not use it"
    if not evidence.is_tested:
        return "not tested"
    if evidence.is_better and not evidence.failed and evidence.is_left_by_holm:
        return "use it"
    return "no difference shown"


def advantage_p_value(loss_difference: SeedEstimate | None, winning_score: SeedEstimate | None) -> float:
    """Compute the two-sided p-value of an advantage in both measures: the larger of the two (Berger, 1982).

    1 where a measure has no interval or points the other way.
    """
    if loss_difference is None or winning_score is None or loss_difference.p is None or winning_score.p is None:
        return 1.0
    if loss_difference.value >= EVEN_LOSS or winning_score.value <= EVEN_SCORE:
        return 1.0
    return max(loss_difference.p, winning_score.p)


def count_needed_seeds(evidence: VerdictEvidence, confidence: float) -> int | None:
    """Count the seeds that would show differences as large as those seen, with a power of 80 % in each measure.

    To show an advantage takes both measures, to show a loss the one that points there.

    Returns:
        Seeds in all, at least one more than there are. None where more than `MOST_SEEDS` would be needed, or where
        the number cannot be estimated: a measure is missing, is the same in all seeds, or equals that of random rows.
    """
    loss, score = evidence.loss_difference, evidence.winning_score
    if loss is None or score is None:
        return None
    needed_by_loss = _seeds_to_show(loss, EVEN_LOSS, confidence)
    needed_by_score = _seeds_to_show(score, EVEN_SCORE, confidence)
    against = [
        needed
        for needed, points_against in (
            (needed_by_loss, loss.value > EVEN_LOSS),
            (needed_by_score, score.value < EVEN_SCORE),
        )
        if points_against and needed is not None
    ]
    if against:
        needed_seeds = min(against)
    elif needed_by_loss is None or needed_by_score is None:
        return None
    else:
        needed_seeds = max(needed_by_loss, needed_by_score)
    return max(needed_seeds, evidence.seeds + 1)


def _seeds_to_show(estimate: SeedEstimate, even_value: float, confidence: float) -> int | None:
    deviation = float(np.std(estimate.by_seed, ddof=1)) if len(estimate.by_seed) > 1 else 0.0
    distance = abs(estimate.value - even_value)
    if deviation == 0 or distance == 0:
        return None
    for seeds in range(MIN_SEEDS, MOST_SEEDS + 1):
        quantiles = scipy.stats.t.ppf([(1 + confidence) / 2, POWER], seeds - 1)
        if quantiles.sum() * deviation / np.sqrt(seeds) <= distance:
            return seeds
    return None


def _lies_above(estimate: SeedEstimate | None, even_value: float) -> bool:
    return estimate is not None and estimate.low is not None and estimate.low > even_value


def _lies_below(estimate: SeedEstimate | None, even_value: float) -> bool:
    return estimate is not None and estimate.high is not None and estimate.high < even_value
