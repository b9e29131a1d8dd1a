"""How stable a choice is: planted cases whose answer is known."""

from itertools import product

import numpy as np
import pytest

from gradfiltering.statistics.stability import expected_overlap, jaccard_overlap, score_correlation, select_top

RTOL = 1e-12


def by_mean(values):
    return lambda positions: values[positions].mean(0)


def test_top_breaks_ties_by_position_and_skips_unscored_rows():
    assert select_top(np.array([1.0, 3.0, np.nan, 3.0, 3.0]), 2).tolist() == [False, True, False, True, False]
    assert select_top(np.array([np.nan, 1.0]), 5).tolist() == [False, True]


@pytest.mark.parametrize(
    ("other", "count", "value"), [([4, 3, 2, 1], 2, 1.0), ([1, 2, 3, 4], 2, 0.0), ([4, 1, 2, 3], 2, 1 / 3)]
)
def test_overlap_is_shared_rows_over_all_of_them(other, count, value):
    assert jaccard_overlap(np.array([4.0, 3, 2, 1]), np.array(other, dtype=float), count) == value


def test_score_correlation_sees_ranks_of_rows_that_both_score():
    score = np.array([1.0, 2.0, 5.0, np.nan])
    assert score_correlation(score, np.array([1.0, 10.0, 11.0, 0.0])) == 1.0
    assert score_correlation(score, -score) == pytest.approx(-1.0)
    assert score_correlation(score, np.array([2.0, 2.0, 2.0, 1.0])) == 0.0


def test_members_that_agree_choose_the_same_rows_whichever_are_drawn():
    values = np.tile(np.random.default_rng(0).normal(size=50), (3, 1))
    assert expected_overlap(by_mean(values), 3, 5, 20, np.random.default_rng(1)) == 1.0


def test_members_of_pure_noise_overlap_little_and_a_signal_helps():
    rng = np.random.default_rng(0)
    noise, signal = rng.normal(size=(9, 400)), 3 * rng.normal(size=400)
    of_noise = expected_overlap(by_mean(noise), 9, 40, 100, np.random.default_rng(1))
    with_signal = expected_overlap(by_mean(noise + signal), 9, 40, 100, np.random.default_rng(1))
    assert of_noise < 0.5 < with_signal


def test_expected_overlap_leaves_out_resamples_of_one_member():
    values = np.random.default_rng(0).normal(size=(3, 12))
    score = by_mean(values)
    whole = score(np.arange(3))
    drawn = [np.array(one) for one in product(range(3), repeat=3) if len(set(one)) > 1]
    exact = np.mean([jaccard_overlap(whole, score(one), 4) for one in drawn])
    found = expected_overlap(score, 3, 4, 4000, np.random.default_rng(1))
    assert found == pytest.approx(exact, abs=0.02)  # four standard errors of 4,000 draws
