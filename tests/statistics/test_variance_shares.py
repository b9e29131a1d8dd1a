"""Shares of variance of outcomes whose decomposition is known."""

from itertools import product

import numpy as np
import pytest

from gradfiltering.statistics.variance_shares import share_variance


def shares_of(function, *levels):
    names = [f"factor {index}" for index in range(len(levels))]
    outcomes = {cell: function(*cell) for cell in product(*levels)}
    return {share.factor: (share.first_order, share.total) for share in share_variance(outcomes, names)}


def test_a_sum_is_shared_by_the_variances_of_its_terms():
    shares = shares_of(lambda first, second: first + 3 * second, (0, 1), (0, 1))
    assert shares == {"factor 0": pytest.approx((0.1, 0.1)), "factor 1": pytest.approx((0.9, 0.9))}


def test_a_pure_interaction_is_no_first_order_share_of_either():
    shares = shares_of(lambda first, second: first * second, (-1, 1), (-1, 1))
    assert shares == {"factor 0": pytest.approx((0.0, 1.0)), "factor 1": pytest.approx((0.0, 1.0))}


def test_a_factor_without_effect_has_no_share():
    shares = shares_of(lambda first, second, third: first * first, (1, 2), ("a", "b", "c"), (5, 6))
    assert shares["factor 1"] == pytest.approx((0, 0)) and shares["factor 2"] == pytest.approx((0, 0))


def test_a_product_of_three_levels_has_its_known_shares():
    """Y = x (1 + y), x in {-1, 0, 1}, y in {-1, 1}: Var Y = 4/3, E[Y|x] = x with variance 2/3, E[Y|y] = 0."""
    shares = shares_of(lambda first, second: first * (1 + second), (-1, 0, 1), (-1, 1))
    assert shares == {"factor 0": pytest.approx((0.5, 1.0)), "factor 1": pytest.approx((0.0, 0.5))}


def test_first_order_and_interaction_add_up_to_all_of_the_variance():
    values = np.random.default_rng(0).normal(size=(4, 3))
    shares = shares_of(lambda first, second: values[first, second], range(4), range(3))
    interaction = shares["factor 0"][1] - shares["factor 0"][0]
    assert sum(first for first, _ in shares.values()) + interaction == pytest.approx(1)


@pytest.mark.parametrize(
    ("outcomes", "message"),
    [
        ({}, "each outcome needs a level"),
        ({(1,): 0.0}, "each outcome needs a level for each of M, rate"),
        ({(1, 2): 0.0, (2, 3): 1.0}, r"not full: 2 combinations of M, rate have no outcome, first \(1, 3\)"),
        ({(1, 2): 1.0, (2, 2): 1.0}, "all outcomes are equal"),
        ({(1, 2): 1.0, (2, 2): float("nan")}, "not finite"),
    ],
)
def test_designs_that_are_not_full_are_refused(outcomes, message):
    with pytest.raises(ValueError, match=message):
        share_variance(outcomes, ["M", "rate"])
