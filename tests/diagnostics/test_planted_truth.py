"""Planted kinds against the choice: shares, AUC and their intervals."""

from dataclasses import replace

import numpy as np
import pytest

from gradfiltering.diagnostics.limits import DiagnosticLimits
from gradfiltering.diagnostics.planted_truth import area_under_curve, auc_interval, compare_with_truth
from gradfiltering.scorers.base import Scores
from tests.reference.bootstrap import resampled_auc

LIMITS = DiagnosticLimits(bootstrap=400)
RTOL = 1e-12
REPEATS = 120
LEAST_COVERAGE = 0.88  # nominal 0.95, less three standard errors of the repeats
KINDS = ["clean"] * 60 + ["gibberish"] * 30 + ["truncated"] * 10


def pair_counting(score, positive):
    pairs = [(above, below) for above in score[positive] for below in score[~positive]]
    return sum(1.0 if above > below else 0.5 if above == below else 0.0 for above, below in pairs) / len(pairs)


def test_auc_counts_pairs_and_halves_ties():
    rng = np.random.default_rng(0)
    for _ in range(20):
        score, positive = rng.integers(0, 5, 40).astype(float), rng.random(40) < 0.3
        np.testing.assert_allclose(area_under_curve(score, positive), pair_counting(score, positive), rtol=RTOL)


@pytest.mark.parametrize(("score", "value"), [([1, 2, 3, 4], 1.0), ([4, 3, 2, 1], 0.0), ([1, 1, 1, 1], 0.5)])
def test_auc_closed_form(score, value):
    assert area_under_curve(np.asarray(score, dtype=float), np.asarray([False, False, True, True])) == value


def test_auc_interval_covers_the_truth_as_often_as_it_says():
    # Normals one apart: the AUC is Phi(1/sqrt 2).
    truth, limits = 0.7602499389, replace(LIMITS, bootstrap=100)
    positive = np.arange(60) < 30
    hits = 0
    for repeat in range(REPEATS):
        rng = np.random.default_rng(repeat)
        found = auc_interval(rng.normal(size=60) + positive, positive, limits, rng)
        assert found["low"] <= found["value"] <= found["high"]
        hits += found["low"] <= truth <= found["high"]
    assert hits / REPEATS >= LEAST_COVERAGE, f"the interval holds the truth in {hits / REPEATS:.0%} of samples only"


@pytest.mark.parametrize("ties", [False, True])
def test_auc_interval_is_that_of_resampling_and_ranking_anew(ties):
    rng = np.random.default_rng(0)
    score, positive = rng.normal(size=70), rng.random(70) < 0.6
    score = score.round(0) if ties else score
    found = auc_interval(score, positive, LIMITS, np.random.default_rng(1))
    low, high = resampled_auc(score, positive, LIMITS.bootstrap, LIMITS.confidence, np.random.default_rng(1))
    np.testing.assert_allclose([found["low"], found["high"]], [low, high], rtol=RTOL)


def test_a_higher_confidence_is_a_wider_interval():
    rng = np.random.default_rng(0)
    score, positive = rng.normal(size=60), np.arange(60) < 30
    narrow, wide = (
        auc_interval(score, positive, replace(LIMITS, confidence=level), np.random.default_rng(1))
        for level in (0.5, 0.99)
    )
    assert wide["low"] < narrow["low"] < narrow["high"] < wide["high"]


def test_nothing_is_said_where_no_truth_is_known():
    found = compare_with_truth(None, [0, 1], None, 0, LIMITS)
    assert found.values == {} and found.warnings == []


def test_shares_of_each_kind():
    chosen = [*range(50, 60), *range(60, 65), *range(90, 95)]  # 10 clean, 5 gibberish, 5 truncated
    share = compare_with_truth(KINDS, chosen, None, 0, LIMITS).values["truth"]["share"]
    assert {kind: (one["pool"], one["selected"]) for kind, one in share.items()} == {
        "clean": (0.6, 0.5), "gibberish": (0.3, 0.25), "truncated": (0.1, 0.25)
    }  # fmt: skip
    for kind, one in share.items():
        assert one["low"] < one["selected"] < one["high"], kind
    # Binomial(20, 1/2)/20 has its 2.5 % and 97.5 % points at 6/20 and 14/20.
    np.testing.assert_allclose([share["clean"]["low"], share["clean"]["high"]], [0.3, 0.7], atol=0.051)


def test_held_out_rows_are_of_no_pool():
    held_out = range(40)  # all of them clean
    share = compare_with_truth(KINDS, range(40, 50), None, 0, LIMITS, held_out).values["truth"]["share"]
    assert {kind: one["pool"] for kind, one in share.items()} == pytest.approx(
        {"clean": 20 / 60, "gibberish": 30 / 60, "truncated": 10 / 60}
    )


def test_a_kind_that_was_never_or_always_chosen():
    share = compare_with_truth(KINDS, range(10), None, 0, LIMITS).values["truth"]["share"]
    assert (share["clean"]["low"], share["clean"]["high"]) == (pytest.approx(0.722467, abs=1e-6), 1.0)
    assert (share["gibberish"]["low"], share["gibberish"]["high"]) == (0.0, pytest.approx(0.277533, abs=1e-6))


def test_auc_of_the_scorer_and_of_random_scores():
    ids = np.asarray([row for row in range(100) if row % 7])  # unscored rows take no part
    clean = np.asarray([KINDS[row] == "clean" for row in ids])
    score = np.random.default_rng(0).normal(size=len(ids)) + clean
    found = compare_with_truth(KINDS, [1, 2], Scores(ids, score), 0, LIMITS).values["truth"]["auc"]
    np.testing.assert_allclose(found["scorer"]["value"], pair_counting(score, clean), rtol=RTOL)
    assert found["scorer"]["low"] < found["scorer"]["value"] < found["scorer"]["high"]
    assert found["random"]["low"] < 0.5 < found["random"]["high"], "random scores should tell nothing apart"


@pytest.mark.parametrize("kinds", [["clean"] * 5, ["gibberish"] * 5])
def test_no_auc_where_all_rows_are_of_one_side(kinds):
    scores = Scores(np.arange(5), np.arange(5.0))
    assert compare_with_truth(kinds, [0], scores, 0, LIMITS).values["truth"]["auc"] == {}


def test_the_seed_decides_the_intervals():
    scores = Scores(np.arange(100), np.random.default_rng(0).normal(size=100))
    first, same, other = (compare_with_truth(KINDS, range(20), scores, seed, LIMITS).values for seed in (0, 0, 1))
    assert first == same and first != other
