"""The verdict on a subset: every rule, at both sides of its border, with intervals worked out by hand."""

from dataclasses import replace

import pytest

from gradfiltering.statistics.seed_intervals import SeedEstimate, estimate_mean_value
from gradfiltering.statistics.usage_verdict import (
    DiagnosticCount,
    VerdictEvidence,
    advantage_p_value,
    count_needed_seeds,
    reach_verdict,
)

# The t-distribution of two degrees of freedom leaves 2.5 % above 4.302653; of three seeds 0.01 apart the mean has a
# standard error of 0.01/√3, so that the interval reaches 0.024842 to both sides.
REACH = 4.302653 * 0.01 / 3**0.5
BETTER_LOSS = estimate_mean_value([-0.21, -0.20, -0.19], 0.95)
WORSE_LOSS = estimate_mean_value([0.19, 0.20, 0.21], 0.95)
BETTER_SCORE = estimate_mean_value([1.19, 1.20, 1.21], 0.95, 1.0)
WORSE_SCORE = estimate_mean_value([0.79, 0.80, 0.81], 0.95, 1.0)
EVEN_LOSS = estimate_mean_value([-0.01, 0.0, 0.01], 0.95)
EVEN_SCORE = estimate_mean_value([0.99, 1.0, 1.01], 0.95, 1.0)
ONE_LOSS, ONE_SCORE = estimate_mean_value([-0.5], 0.95), estimate_mean_value([1.9], 0.95, 1.0)
DOUBT, FORBIDDEN = DiagnosticCount("easiness", False, 1), DiagnosticCount("heldout_loss_fell", True, 2)


def evidence(loss, score, seeds=3, **further):
    return VerdictEvidence(seeds, loss, score, **further)


def test_the_intervals_are_those_worked_out_by_hand():
    assert (BETTER_LOSS.low, BETTER_LOSS.high) == pytest.approx((-0.2 - REACH, -0.2 + REACH), abs=1e-6)
    assert (WORSE_SCORE.low, WORSE_SCORE.high) == pytest.approx((0.8 - REACH, 0.8 + REACH), abs=1e-6)


@pytest.mark.parametrize(
    ("loss", "score", "word"),
    [
        (BETTER_LOSS, BETTER_SCORE, "use it"),
        (WORSE_LOSS, BETTER_SCORE, "do not use it"),
        (BETTER_LOSS, WORSE_SCORE, "do not use it"),
        (WORSE_LOSS, None, "do not use it"),
        (None, WORSE_SCORE, "do not use it"),
        (BETTER_LOSS, EVEN_SCORE, "no difference shown"),
        (EVEN_LOSS, BETTER_SCORE, "no difference shown"),
        (EVEN_LOSS, EVEN_SCORE, "no difference shown"),
        (BETTER_LOSS, None, "not tested"),
        (None, BETTER_SCORE, "not tested"),
        (None, None, "not tested"),
        (BETTER_LOSS, ONE_SCORE, "not tested"),
        (ONE_LOSS, ONE_SCORE, "not tested"),
    ],
)
def test_both_measures_must_be_better_and_neither_worse(loss, score, word):
    assert reach_verdict(evidence(loss, score)) == word


@pytest.mark.parametrize(
    ("loss", "token_loss", "word"),
    [
        (BETTER_LOSS, BETTER_LOSS, "use it"),
        (BETTER_LOSS, EVEN_LOSS, "use it"),
        (BETTER_LOSS, None, "use it"),
        (BETTER_LOSS, WORSE_LOSS, "no difference shown"),
        (EVEN_LOSS, BETTER_LOSS, "no difference shown"),
        (EVEN_LOSS, WORSE_LOSS, "no difference shown"),
        (WORSE_LOSS, BETTER_LOSS, "no difference shown"),
        (WORSE_LOSS, EVEN_LOSS, "do not use it"),
        (WORSE_LOSS, WORSE_LOSS, "do not use it"),
    ],
)
def test_a_loss_that_the_mean_over_tokens_contradicts_counts_for_nothing(loss, token_loss, word):
    assert reach_verdict(evidence(loss, BETTER_SCORE, token_loss_difference=token_loss)) == word


def test_a_contradicted_loss_leaves_a_worse_score_its_say():
    contradicted = evidence(BETTER_LOSS, WORSE_SCORE, token_loss_difference=WORSE_LOSS)
    assert reach_verdict(contradicted) == "do not use it"


@pytest.mark.parametrize(("middle", "word"), [(-REACH - 1e-4, "use it"), (-REACH + 1e-4, "no difference shown")])
def test_the_upper_limit_of_the_loss_decides(middle, word):
    loss = estimate_mean_value([middle - 0.01, middle, middle + 0.01], 0.95)
    assert reach_verdict(evidence(loss, BETTER_SCORE)) == word


@pytest.mark.parametrize("numbers", [(-9.0, 2.0), (9.0, 0.0)])
@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_never_test_anything(numbers, seeds):
    loss = estimate_mean_value([numbers[0] + 0.01 * seed for seed in range(seeds)], 0.95)
    score = estimate_mean_value([numbers[1]] * seeds, 0.95, 1.0)
    assert reach_verdict(evidence(loss, score, seeds)) == "not tested"


def test_seeds_that_do_not_differ_show_nothing():
    same = estimate_mean_value([-0.2] * 3, 0.95)
    assert same.low is None and reach_verdict(evidence(same, BETTER_SCORE)) == "no difference shown"


def test_a_failed_diagnostic_in_one_seed_keeps_from_use():
    assert reach_verdict(evidence(BETTER_LOSS, BETTER_SCORE, failed=[DOUBT])) == "no difference shown"
    assert reach_verdict(evidence(ONE_LOSS, ONE_SCORE, 1, failed=[DOUBT])) == "not tested"


@pytest.mark.parametrize(
    ("seeds", "failed_seeds", "word"),
    [(1, 1, "do not use it"), (2, 1, "not tested"), (3, 2, "do not use it"), (3, 1, "no difference shown")],
)
def test_a_diagnostic_forbids_where_it_failed_in_most_seeds(seeds, failed_seeds, word):
    loss, score = (BETTER_LOSS, BETTER_SCORE) if seeds == 3 else (ONE_LOSS, ONE_SCORE)
    failed = [replace(FORBIDDEN, seeds=failed_seeds)]
    assert reach_verdict(evidence(loss, score, seeds, failed=failed)) == word


def test_an_advantage_that_holm_does_not_leave_is_none():
    assert reach_verdict(evidence(BETTER_LOSS, BETTER_SCORE, settings=9, is_left_by_holm=False)) == (
        "no difference shown"
    )


def test_an_advantage_in_both_has_the_larger_p_value():
    # Of -0.2 at a standard error of 0.1/√3, t = 3.4641; two degrees of freedom give p = 1 - t/√(t² + 2) = 0.07418.
    weaker_loss = estimate_mean_value([-0.1, -0.2, -0.3], 0.95)
    assert advantage_p_value(weaker_loss, BETTER_SCORE) == pytest.approx(1 - 3.4641016 / 14**0.5, abs=1e-6)
    assert advantage_p_value(BETTER_LOSS, WORSE_SCORE) == advantage_p_value(WORSE_LOSS, BETTER_SCORE) == 1
    assert advantage_p_value(ONE_LOSS, ONE_SCORE) == advantage_p_value(None, BETTER_SCORE) == 1


def estimate(value, deviation, seeds=3):
    """An estimate whose seeds have this mean and, with three seeds, this standard deviation."""
    by_seed = (value - deviation, value, value + deviation)
    return SeedEstimate(value, value - 1, value + 1, 0.5, seeds, by_seed)


def test_needed_seeds_are_those_of_the_t_test():
    # 2.2622 + 0.8834 = 3.1456 with nine degrees of freedom, and √10 = 3.1623; with eight, 3.1949 and √9 = 3.
    assert count_needed_seeds(evidence(estimate(-0.1, 0.1), estimate(1.1, 0.1)), 0.95) == 10
    # The measure that needs more decides on an advantage, the one that points against it on a loss.
    assert count_needed_seeds(evidence(estimate(-0.1, 0.1), estimate(1.1, 0.01)), 0.95) == 10
    assert count_needed_seeds(evidence(estimate(-0.1, 0.01), estimate(0.9, 0.1)), 0.95) == 10


def test_differences_that_take_too_many_seeds_give_no_number():
    assert count_needed_seeds(evidence(estimate(-0.1, 0.3), estimate(1.1, 0.01)), 0.95) is None
    assert count_needed_seeds(evidence(None, estimate(1.1, 0.01)), 0.95) is None
    assert count_needed_seeds(evidence(estimate(0.0, 0.1), estimate(1.0, 0.1)), 0.95) is None
