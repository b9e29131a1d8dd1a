"""Intervals of small and degenerate samples: no certainty from a handful of rows, and never a NaN."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats

from gradfiltering.diagnostics.limits import DiagnosticLimits
from gradfiltering.diagnostics.planted_truth import auc_interval, compare_with_truth
from gradfiltering.scorers.base import Scores
from gradfiltering.statistics.agreement import measure_agreements
from gradfiltering.statistics.intervals import share_interval, sign_test, single_outcome_interval
from gradfiltering.statistics.judge_bias import measure_judge_bias
from gradfiltering.statistics.length_control import LENGTH_FORMS, length_controlled
from gradfiltering.statistics.paired_comparison import compare_candidates
from gradfiltering.statistics.rank_correlation import spearman_correlation
from gradfiltering.statistics.winning_score import pairwise_winning_score

OUTCOMES = {"win": 1, "tie": 0, "loss": -1}


# R 4.3: binom::binom.confint(x, n, methods = "wilson"); for x of n also n/(n + z²), Wilson's closed form.
@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        (20, 20, 20 / (20 + 1.959963984540054**2), 1.0),
        (0, 20, 0.0, 1 - 20 / (20 + 1.959963984540054**2)),
        (1, 1, 1 / (1 + 1.959963984540054**2), 1.0),
        (5, 10, 0.2365930905, 0.7634069095),
        (1, 10, 0.0178762131, 0.4041500268),
    ],
)
def test_a_share_has_wilsons_interval(count, total, low, high):
    assert share_interval(count / total, total, 0.95) == pytest.approx((low, high), abs=1e-9)


@pytest.mark.parametrize(
    ("outcome", "count", "low", "high"),
    [
        # (0.025)^(1/5) = 0.47817...: at least that share of prompts is won, and all others may be lost.
        ("win", 5, 2 * 0.025**0.2, 2.0),
        ("loss", 5, 0.0, 2 - 2 * 0.025**0.2),
        ("tie", 5, 0.025**0.2, 2 - 0.025**0.2),
        ("win", 1, 0.05, 2.0),
        ("tie", 1, 0.025, 1.975),
        ("win", 218, 2 * 0.025 ** (1 / 218), 2.0),
    ],
)
def test_one_outcome_only_proves_no_certain_score(outcome, count, low, high):
    score = pairwise_winning_score([outcome] * count, 200, 0.95, seed=0)
    assert score.value == 1 + OUTCOMES[outcome]
    assert (score.low, score.high) == (score.bca_low, score.bca_high) == pytest.approx((low, high), abs=1e-9)


@pytest.mark.parametrize("count", range(1, 12))
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_the_bound_of_one_outcome_agrees_with_the_sign_test(count, confidence):
    low, high = single_outcome_interval(1.0, count, -1.0, 1.0, confidence)
    assert (low > 0) == (sign_test(count, 0) < 1 - confidence) and high == 1
    mirrored = single_outcome_interval(-1.0, count, -1.0, 1.0, confidence)
    assert mirrored == pytest.approx((-high, -low))


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [3, 5, 10, 20])
@pytest.mark.parametrize("shares", [(0.9, 0.0, 0.1), (0.95, 0.05, 0.0), (0.08, 0.9, 0.02), (0.02, 0.02, 0.96)])
def test_intervals_of_few_prompts_hold_the_truth(shares, prompts):
    """Coverage where one outcome only was drawn, and that a point (the bootstrap's interval there) would not have."""
    experiments, truth = 4000, 1 + shares[0] - shares[2]
    drawn = np.random.default_rng(3).multinomial(prompts, shares, size=experiments)
    single = drawn[(drawn == prompts).any(axis=1)]
    held = 0
    for wins, ties, losses in single:
        score = pairwise_winning_score(["win"] * wins + ["tie"] * ties + ["loss"] * losses, 1, 0.95, seed=0)
        held += score.low <= truth <= score.high
        assert truth != score.value, "the interval that is a point never holds the truth"
    missed_share = (len(single) - held) / experiments
    assert missed_share <= 0.025 + 3 * np.sqrt(0.025 / experiments), "exact: at most a tail is missed"


@pytest.mark.parametrize(
    ("difference", "count", "low", "high", "p"),
    [
        (0, 300, -2 * (1 - 0.025 ** (1 / 300)), 2 * (1 - 0.025 ** (1 / 300)), 1.0),
        (2, 1, 2 * 0.025 - 2 * 0.975, 2.0, 1.0),
        (2, 8, 2 * (2 * 0.025**0.125 - 1), 2.0, 2 * 0.5**8),
        (1, 8, 3 * 0.025**0.125 - 2, 2 - 0.025**0.125, 2 * (2 / 3) ** 8),
        (-2, 8, -2.0, -2 * (2 * 0.025**0.125 - 1), 2 * 0.5**8),
    ],
)
def test_candidates_that_always_differ_alike_are_not_certain(difference, count, low, high, p):
    first = {number: 1 if difference > 0 else -1 if difference < 0 else 0 for number in range(count)}
    second = {number: outcome - difference for number, outcome in first.items()}
    (pair,) = compare_candidates({"a": first, "b": second}, 500, 0.95, seed=0)
    assert (pair.low, pair.high, pair.p) == pytest.approx((low, high, p), abs=1e-9)


@pytest.mark.parametrize(
    ("labels", "share", "kappa", "kappa_low", "kappa_high"),
    [
        # Two labels, each half of the time: chance agrees in a half.
        (("abababababababababab",) * 2, 1.0, 1.0, 1 - 2 * (1 - 20 / (20 + 1.959963984540054**2)), 1.0),
        (("ab", "ba"), 0.0, -1.0, -1.0, 1 - 2 * (1 - (1 - 2 / (2 + 1.959963984540054**2)))),
        (("aaaa", "aaaa"), 1.0, None, None, None),  # one category: nothing to agree on beyond chance
        (("a", "b"), 0.0, 0.0, 0.0, 1 - 1 / (1 + 1.959963984540054**2)),
        (("ab", "ab", "ab"), 1.0, 1.0, 1 - 2 * (1 - 2 / (2 + 1.959963984540054**2)), 1.0),
    ],
)
def test_raters_who_agree_on_all_or_nothing_are_not_certain(labels, share, kappa, kappa_low, kappa_high):
    raters = {f"rater {number}": dict(enumerate(given)) for number, given in enumerate(labels)}
    agreement = measure_agreements(raters, 200, 0.95, seed=0)[-1]
    assert (agreement.share_low, agreement.share_high) == share_interval(share, len(labels[0]), 0.95)
    assert (agreement.share, agreement.kappa) == (share, pytest.approx(kappa))
    assert (agreement.kappa_low, agreement.kappa_high) == (pytest.approx(kappa_low), pytest.approx(kappa_high))


def test_one_resample_that_drew_one_label_only_leaves_a_number():
    raters = {"ann": {0: "a", 1: "b", 2: "b"}, "bob": {0: "a", 1: "b", 2: "a"}}
    for seed in range(30):
        (agreement,) = measure_agreements(raters, 1, 0.95, seed)
        json.dumps(asdict(agreement), allow_nan=False)
        assert agreement.kappa_low <= agreement.kappa_high


def test_a_subset_of_one_kind_has_an_interval_of_its_share():
    kinds, scores = ["clean"] * 30 + ["gibberish"] * 10, np.arange(40, 0, -1.0)
    found = compare_with_truth(kinds, range(20), Scores(np.arange(40), scores, {}), 0, DiagnosticLimits()).values
    clean, gibberish = (found["truth"]["share"][kind] for kind in ("clean", "gibberish"))
    assert clean == {"pool": 0.75, "selected": 1.0, "low": pytest.approx(0.838875, abs=1e-6), "high": 1.0}
    assert gibberish == {"pool": 0.25, "selected": 0.0, "low": 0.0, "high": pytest.approx(0.161125, abs=1e-6)}
    # Ten planted rows, each below a clean row of its own.
    assert found["truth"]["auc"]["scorer"] == {"value": 1.0, "low": pytest.approx(0.025**0.1), "high": 1.0}


@pytest.mark.parametrize(
    ("row_scores", "value", "low", "high"),
    [
        ([3.0, 2.0, 1.0], 1.0, 0.025, 1.0),
        ([1.0, 2.0, 3.0], 0.0, 0.0, 0.975),
        ([7.0, 7.0, 7.0], 0.5, 0.0125, 0.9875),
    ],
)
def test_the_auc_of_a_single_pair_is_not_certain(row_scores, value, low, high):
    is_clean = np.array([True, False, False])
    found = auc_interval(np.array(row_scores), is_clean, DiagnosticLimits(), np.random.default_rng(0))
    assert found == pytest.approx({"value": value, "low": low, "high": high})


@pytest.mark.parametrize("kinds", [["clean"] * 4, ["gibberish"] * 4])
def test_one_class_has_no_auc(kinds):
    found = compare_with_truth(kinds, [0, 1], Scores(np.arange(4), np.arange(4.0), {}), 0, DiagnosticLimits()).values
    assert found["truth"]["auc"] == {}


@pytest.mark.parametrize("form", LENGTH_FORMS)
@pytest.mark.parametrize("outcome", [1, 0, -1])
def test_length_control_of_one_outcome_is_not_certain(outcome, form):
    controlled = length_controlled(
        np.full(5, outcome),
        np.array([[3.0, 1.0], [2.0, 4.0], [9.0, 1.0], [4.0, 2.0], [1.0, 1.0]]),
        np.zeros(5),
        form,
        100,
        0.95,
        0,
    )
    name = {1: "win", 0: "tie", -1: "loss"}[outcome]
    score = pairwise_winning_score([name] * 5, 10, 0.95, seed=0)
    assert (controlled.low, controlled.high) == (score.low, score.high)
    assert controlled.low <= controlled.value <= controlled.high


@pytest.mark.parametrize("verdicts", [[], ["unparsed"] * 3])
def test_without_a_judged_prompt_there_is_no_score(verdicts):
    score = pairwise_winning_score(verdicts, 100, 0.95, seed=0)
    assert (score.value, score.low, score.high, score.bca_low, score.sign_p, score.detectable) == (None,) * 6
    assert score.unparsed == len(verdicts)
    bias = measure_judge_bias(
        np.full((len(verdicts), 2), np.nan), np.zeros((len(verdicts), 2)), np.zeros(len(verdicts)), 10, 0.95, 0
    )
    assert (bias.contradiction_rate, bias.first_slot_share, bias.longer_wins_share) == (None, None, None)
    assert bias.length_controlled is None
    json.dumps([asdict(score), asdict(bias)], allow_nan=False)


@pytest.mark.parametrize(
    ("first", "second"),
    [([1, 1, 1], [1, 2, 3]), ([1, 2], [2, 1]), ([], []), ([1, np.nan, 3, 4], [1, 2, 3, 4]), ([np.inf] * 3, [1, 2, 3])],
)
def test_what_does_not_vary_has_no_correlation(first, second):
    assert spearman_correlation(np.array(first, float), np.array(second, float)) is None


def test_infinite_values_have_ranks():
    values = np.array([-np.inf, 1.0, np.inf, 5.0])
    expected = stats.spearmanr([0, 1, 3, 2], [0, 1, 2, 3]).statistic
    assert spearman_correlation(values, np.arange(4.0)) == pytest.approx(expected)
