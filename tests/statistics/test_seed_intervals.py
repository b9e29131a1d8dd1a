"""Means over seeds: closed forms, coverage by simulation, and what few seeds or one outcome leave unknown."""

import numpy as np
import pytest
from scipy import stats

from gradfiltering.seeding import numpy_rng
from gradfiltering.statistics.intervals import single_outcome_interval
from gradfiltering.statistics.seed_intervals import estimate_mean_outcome, estimate_mean_value, two_way_interval
from scripts.simulate_intervals import (
    Setting,
    make_bootstrap,
    measure_coverage,
    simulate_outcomes,
    t_of_two_ways,
    true_mean,
)


def slow_two_way(cells, confidence):
    """The variance by loops over seeds, prompts and cells (Cameron, Gelbach and Miller, 2011)."""
    seeds, prompts = cells.shape
    known = [[p for p in range(prompts) if np.isfinite(cells[s, p])] for s in range(seeds)]
    means = [sum(cells[s, p] for p in known[s]) / len(known[s]) for s in range(seeds)]
    errors = {(s, p): (cells[s, p] - means[s]) / len(known[s]) / seeds for s in range(seeds) for p in known[s]}
    by_prompt = sum(sum(errors.get((s, p), 0.0) for s in range(seeds)) ** 2 for p in range(prompts))
    by_cell = sum(error**2 for error in errors.values())
    estimate = sum(means) / seeds
    by_seed = sum((mean - estimate) ** 2 for mean in means) / (seeds - 1) / seeds
    reach = stats.t.ppf((1 + confidence) / 2, seeds - 1) * (by_seed + max(by_prompt - by_cell, 0)) ** 0.5
    return estimate - reach, estimate + reach


@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_the_interval_is_that_of_the_slow_twin(missing):
    rng = np.random.default_rng(0)
    cells = rng.choice([-1.0, 0.0, 0.5, 1.0], size=(4, 30)) + rng.normal(size=30)
    cells[rng.random(cells.shape) < missing] = np.nan
    low, high, p_value = two_way_interval(cells, 0.95)
    np.testing.assert_allclose((low, high), slow_two_way(cells, 0.95), rtol=1e-12)
    at_limit = two_way_interval(cells - high, 0.95)[2]
    assert at_limit == pytest.approx(0.05) and 0 <= p_value <= 1


def test_seeds_that_coincide_by_chance_prove_nothing():
    """11 of 50 prompts won in each of three seeds, other prompts in each: no error of 0."""
    outcomes = [[{(seed, prompt): float(prompt < 11) for prompt in range(50)}] for seed in range(3)]
    estimate = estimate_mean_outcome(outcomes, 0.95)
    error = (0.22 * 0.78 / 150) ** 0.5
    reach = stats.t.ppf(0.975, 2) * error
    assert (estimate.low, estimate.high) == pytest.approx((0.22 - reach, 0.22 + reach))
    assert estimate.p == pytest.approx(2 * stats.t.sf(0.22 / error, 2))
    one_each = estimate_mean_outcome([[{"a": 1.0, "b": 0.0, "c": 0.0}], [{"a": 0.0, "b": 1.0, "c": 0.0}],
                                      [{"a": 0.0, "b": 0.0, "c": 1.0}]], 0.95)  # fmt: skip
    assert one_each.low < 0 < one_each.high and one_each.p > 0.05


def test_prompts_of_each_seeds_own_leave_students_interval():
    rng = np.random.default_rng(1)
    outcomes = [[{f"{seed}-{prompt}": float(rng.choice([-1, 0, 1])) for prompt in range(20)}] for seed in range(5)]
    estimate = estimate_mean_outcome(outcomes, 0.95)
    expected = stats.ttest_1samp(estimate.by_seed, 0.0)
    interval = expected.confidence_interval(0.95)
    assert (estimate.low, estimate.high, estimate.p) == pytest.approx((interval.low, interval.high, expected.pvalue))
    numbers = estimate_mean_value(estimate.by_seed, 0.95)
    assert (numbers.low, numbers.high, numbers.p) == pytest.approx((estimate.low, estimate.high, estimate.p))


def test_the_published_example_by_seed():
    """G-SNR on Alpaca, 1.19, 1.24 and 1.00: no lead is shown."""
    estimate = estimate_mean_value([1.19, 1.24, 1.00], 0.95, null_value=1.0)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((1.143, 0.83, 1.46), abs=0.006)
    assert estimate.p > 0.15


def test_draws_are_averaged_within_their_seed():
    draws = [[{"a": 1.0, "b": 1.0}], [{"a": 0.0, "b": 0.0}, {"a": -1.0, "b": -1.0}, {"a": 1.0}], [{"a": 1.0, "b": 0.0}]]
    estimate = estimate_mean_outcome(draws, 0.95)
    assert estimate.by_seed == pytest.approx((1.0, -0.25, 0.5)) and estimate.value == pytest.approx(1.25 / 3)
    assert (estimate.seeds, estimate.prompts) == (3, 2)


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_have_no_interval(seeds):
    outcomes = [[{"a": 1.0, "b": 0.0, "c": float(seed)}] for seed in range(seeds)]
    estimate = estimate_mean_outcome(outcomes, 0.95)
    assert (estimate.low, estimate.high, estimate.p) == (None, None, None) and estimate.seeds == seeds
    numbers = estimate_mean_value([0.5 + seed for seed in range(seeds)], 0.95)
    assert (numbers.low, numbers.high, numbers.p) == (None, None, None)


@pytest.mark.parametrize("outcome", [1.0, 0.0, -1.0])
def test_one_outcome_alone_has_the_multinomials_bound_over_seeds(outcome):
    estimate = estimate_mean_outcome([[{"a": outcome, "b": outcome}]] * 4, 0.95)
    assert (estimate.low, estimate.high) == pytest.approx(single_outcome_interval(outcome, 4, -1.0, 1.0, 0.95))
    assert estimate.low <= 0 <= estimate.high, "four seeds alone prove nothing"
    assert estimate.p == pytest.approx(1.0 if outcome == 0 else 2 * 0.5**4)
    assert estimate_mean_outcome([[{"a": 1.0}]] * 6, 0.95).low > 0, "six do: 2 * 0.5**6 < 0.05"
    assert estimate_mean_value([0.7, 0.7, 0.7], 0.95).low is None, "no spread was seen, and nothing bounds the values"


def test_the_interval_stays_within_the_outcomes():
    estimate = estimate_mean_outcome([[{"a": 1.0, "b": 1.0}], [{"a": 1.0, "b": 1.0}], [{"a": -1.0, "b": 0.0}]], 0.95)
    assert estimate.low == -1.0 and estimate.high == 1.0 and estimate.p > 0.05


def test_nothing_to_average_is_refused():
    for outcomes in ([], [[{}]], [[{"a": 1.0}], []]):
        with pytest.raises(ValueError, match="no seed, or a seed without an outcome"):
            estimate_mean_outcome(outcomes, 0.95)


EXPERIMENTS = 1000


@pytest.mark.parametrize(
    "setting",
    [
        Setting(seeds, prompts, spread, effect, shares_prompts, unequal_draws)
        for seeds, prompts, spread, effect, shares_prompts, unequal_draws in (
            (3, 80, 0.0, 0.0, True, False),
            (3, 300, 0.15, 0.4, True, True),
            (5, 80, 0.05, 0.0, False, True),
            (8, 80, 0.1, 0.4, True, True),
            (10, 300, 0.0, 0.0, True, False),
            (10, 80, 0.15, 0.0, True, False),
        )
    ],
    ids=lambda setting: f"{setting.seeds} seeds, {setting.spread:g}",
)
def test_intervals_cover_the_truth_as_often_as_they_say(setting):
    """Coverage of 93 % at least, within the error of so many experiments (three standard deviations)."""
    outcomes, has_draw = simulate_outcomes(setting, EXPERIMENTS, numpy_rng(0, "coverage", str(setting)))
    assert outcomes.mean((1, 2, 3)).mean() == pytest.approx(true_mean(setting), abs=0.015)
    measured = measure_coverage(setting, t_of_two_ways, outcomes, has_draw)
    tolerance = 3 * (0.93 * 0.07 / EXPERIMENTS) ** 0.5
    assert measured["coverage"] >= 0.93 - tolerance
    if setting.effect == 0:
        assert measured["stars"] == pytest.approx(1 - measured["coverage"]) and measured["stars"] <= 0.07 + tolerance


def test_intervals_over_prompts_alone_give_false_stars():
    setting = Setting(3, 200, 0.1, 0.0, True, False)
    outcomes, has_draw = simulate_outcomes(setting, 300, numpy_rng(0, "false stars"))
    by_prompts = measure_coverage(setting, make_bootstrap(200, ("prompts",)), outcomes, has_draw)
    by_all = measure_coverage(setting, t_of_two_ways, outcomes, has_draw)
    assert by_prompts["stars"] > 0.2 and by_all["stars"] < 0.09
