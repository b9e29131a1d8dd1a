"""Intervals, tests, length control, repeats and comparisons against slow twins, closed forms and simulation."""

import gc

import numpy as np
import pytest
from scipy import stats

from gradfiltering.errors import UserError
from gradfiltering.statistics.intervals import detectable_difference, sign_test
from gradfiltering.statistics.length_control import RIDGE, fit_logistic, length_controlled, measure_length_pull
from gradfiltering.statistics.paired_comparison import compare_candidates, correct_by_holm
from gradfiltering.statistics.winning_score import pairwise_winning_score
from tests.reference import statistics as slow

VALUES = np.array([1.0, 0.0, -1.0])
RESAMPLES = 4000
INTERVAL_TOLERANCE = 0.03  # Monte-Carlo error of both sides on a grid of 1/judged
FIT_TOLERANCE = 1e-4  # of the general minimiser


def outcomes_of(counts):
    return [name for name, n in zip(("win", "tie", "loss"), counts, strict=True) for _ in range(n)]


@pytest.mark.parametrize("counts", [(30, 10, 20), (5, 40, 5), (70, 3, 2), (3, 2, 40)])
def test_bca_agrees_with_its_slow_twin_and_with_scipy(counts):
    score = pairwise_winning_score(outcomes_of(counts), RESAMPLES, 0.95, seed=1)
    points = np.repeat(VALUES, counts)
    low, high = slow.bca_interval(points.tolist(), RESAMPLES, 0.95, seed=2)
    assert (score.bca_low - 1, score.bca_high - 1) == pytest.approx((low, high), abs=INTERVAL_TOLERANCE)
    theirs = stats.bootstrap((points,), np.mean, n_resamples=RESAMPLES, method="BCa", rng=3).confidence_interval
    assert (score.bca_low - 1, score.bca_high - 1) == pytest.approx(tuple(theirs), abs=2 * INTERVAL_TOLERANCE)


@pytest.mark.parametrize("wins", range(0, 13, 3))
def test_the_sign_test_is_exact(wins):
    for losses in range(12):
        expected = slow.sign_test(wins, losses) if wins + losses else 1.0
        assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("shares", "prompts"), [((0.49, 0.22, 0.29), 1030), ((0.40, 0.25, 0.35), 200), ((0.3, 0.4, 0.3), 80)]
)
def test_nineteen_in_twenty_intervals_hold_the_truth(shares, prompts):
    """Coverage by simulation; 2,500 experiments leave a standard error of 0.44 percentage points."""
    experiments, truth = 2500, shares[0] - shares[2] + 1
    drawn = np.random.default_rng(7).multinomial(prompts, shares, size=experiments)
    covered = {"percentile": 0, "bca": 0}
    for seed, counts in enumerate(drawn):
        score = pairwise_winning_score(outcomes_of(counts), 1000, 0.95, seed)
        covered["percentile"] += score.low <= truth <= score.high
        covered["bca"] += score.bca_low <= truth <= score.bca_high
    for name, count in covered.items():
        assert 0.93 <= count / experiments <= 0.97, f"{name} covers {count / experiments:.3f} at {prompts} prompts"


def test_the_detectable_difference_is_detected_with_the_stated_power():
    counts = np.array([400, 200, 400])
    difference = detectable_difference(VALUES, counts, 0.95)
    shares = np.array([0.4 + difference / 2, 0.2, 0.4 - difference / 2])
    drawn = np.random.default_rng(1).multinomial(1000, shares, size=4000)
    means = (drawn[:, 0] - drawn[:, 2]) / 1000
    deviations = np.sqrt((drawn[:, 0] + drawn[:, 2]) / 1000 - means**2)
    found = (np.abs(means) > stats.norm.ppf(0.975) * deviations / np.sqrt(1000)).mean()
    assert found == pytest.approx(0.80, abs=0.025)
    assert detectable_difference(VALUES, np.array([9, 0, 0]), 0.95) is None


def test_logistic_regression_agrees_with_a_general_minimiser():
    rng = np.random.default_rng(0)
    wins, pull = rng.choice([0.0, 0.5, 1.0], size=200), np.tanh(rng.normal(size=200))
    weights = rng.multinomial(200, np.full(200, 1 / 200), size=3)
    sets = rng.integers(3, size=200)
    in_set = (sets == np.arange(3)[:, None]).astype(float)
    for weight, *fitted in zip(weights, *fit_logistic(wins, pull, in_set, weights), strict=True):
        repeated = [np.repeat(values, weight) for values in (wins, pull, sets)]
        expected = slow.logistic(repeated[0], repeated[1], RIDGE, repeated[2])
        np.testing.assert_allclose(np.concatenate([fitted[0], [fitted[1]]]), expected, rtol=0, atol=FIT_TOLERANCE)


@pytest.mark.parametrize(("form", "strength"), [("tanh", 2.0), ("log_ratio", 8.0)])
def test_length_control_takes_out_length_and_nothing_else(form, strength):
    rng = np.random.default_rng(3)
    lengths = np.stack([rng.normal(640, 70, size=4000), rng.normal(600, 70, size=4000)], axis=1)
    pull = measure_length_pull(lengths, form)  # the candidate is longer on average
    chance = 1 / (1 + np.exp(-strength * pull))  # and only length decides
    outcomes = np.where(rng.random(4000) < chance, 1, -1)
    raw = outcomes.mean() + 1
    one_set = np.zeros(4000)
    controlled = length_controlled(outcomes, lengths, one_set, form, 300, 0.95, seed=0)
    assert raw > 1.1 and controlled.low < 1 < controlled.high
    assert controlled.length_effect == pytest.approx(strength, rel=0.1)
    # Where lengths do not differ there is nothing to take out, up to the ridge.
    same = length_controlled(outcomes, np.ones((4000, 2)), one_set, form, 300, 0.95, seed=0)
    assert same.value == pytest.approx(raw, abs=1e-4) and same.length_effect == 0
    for sign in (1, -1):  # one side always wins: finite, and near the end of the scale
        decided = length_controlled(np.full(50, sign), lengths[:50], one_set[:50], form, 50, 0.95, 0)
        assert abs(decided.value - 1) > 0.95


def test_length_control_gives_each_prompt_set_its_own_intercept():
    """Where sets differ in length and in the candidate's chances, one intercept takes the difference for length's."""
    rng, sets = np.random.default_rng(5), np.repeat([0, 1], 3000)
    lengths = np.stack([rng.normal(600, 60, 6000) + 100 * sets, rng.normal(600, 60, 6000)], axis=1)
    chance = np.where(sets == 1, 0.7, 0.3)  # length decides nothing
    outcomes = np.where(rng.random(6000) < chance, 1, -1)
    pooled = length_controlled(outcomes, lengths, np.zeros(6000), "tanh", 50, 0.95, seed=0)
    by_set = length_controlled(outcomes, lengths, sets, "tanh", 200, 0.95, seed=0)
    assert pooled.length_effect > 0.5 and abs(by_set.length_effect) < 0.2
    assert by_set.low < 1.0 < by_set.high


def test_holm_by_hand():
    assert correct_by_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert correct_by_holm([0.6, 0.9]) == [1.0, 1.0] and correct_by_holm([]) == []


def test_candidates_are_compared_prompt_by_prompt():
    """What is the same for both does not widen the interval: pairing finds what two separate intervals would not."""
    rng = np.random.default_rng(2)
    hard = rng.choice([1, -1], size=300)
    better = np.where((hard == -1) & (rng.random(300) < 0.12), 1, hard)
    keys = [("set", str(number)) for number in range(300)]
    table = {
        "base": dict(zip(keys, hard.tolist(), strict=True)),
        "twin": dict(zip(keys, hard.tolist(), strict=True)),
        "better": dict(zip(keys, better.tolist(), strict=True)) | {("set", "more"): 1},
    }
    found = {(one.first_name, one.second_name): one for one in compare_candidates(table, 2000, 0.95, seed=0)}
    same, pair = found["base", "twin"], found["base", "better"]
    assert (same.difference, same.p, same.detectable) == (0, 1.0, None)
    assert (same.low, same.high) == pytest.approx((-0.02444, 0.02444), abs=1e-5), "300 prompts prove no equality"
    difference = float((hard - better).mean())
    assert pair.prompts == 300 and pair.difference == pytest.approx(difference) and pair.high < 0
    assert pair.p < 0.01 and pair.p_holm >= pair.p
    # The twin: draw prompts one by one.
    drawn = [(hard - better)[rng.integers(0, 300, 300)].mean() for _ in range(4000)]
    assert (pair.low, pair.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.015)
    with pytest.raises(UserError, match="no judged prompt in common"):
        compare_candidates({"a": {("s", "1"): 1}, "b": {("s", "2"): 1}}, 10, 0.95, 0)


@pytest.fixture
def frozen_garbage():
    """Let statsmodels collect no garbage of the whole session in each correction: that takes half a second."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("frozen_garbage")
def test_without_a_difference_few_comparisons_are_significant():
    rng, false = np.random.default_rng(5), 0
    for seed in range(300):
        drawn = rng.choice([1, 0, -1], size=(3, 120))
        table = {str(name): {("s", str(n)): int(v) for n, v in enumerate(row)} for name, row in enumerate(drawn)}
        false += any(one.p_holm < 0.05 for one in compare_candidates(table, 400, 0.95, seed))
    assert false / 300 <= 0.09, "three comparisons under Holm: any false finding in at most one of twenty experiments"
