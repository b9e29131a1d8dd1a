import numpy as np

from gradfiltering.requests import BaseModelLosses
from gradfiltering.scorers.perplexity_middle import PerplexityMiddle

RTOL = 1e-12


def test_the_median_is_first_and_the_extremes_last(measured):
    scores = PerplexityMiddle().score(measured(5, losses=np.asarray([9.0, 1.0, 2.0, 0.1, 3.0])))
    np.testing.assert_allclose(scores.score, [-0.4, -0.2, 0.0, -0.4, -0.2], rtol=RTOL, atol=1e-15)
    assert scores.rank.tolist() == [4, 2, 1, 5, 3], "ties by example id"
    np.testing.assert_allclose(scores.columns["base_perplexity"], np.exp([9.0, 1.0, 2.0, 0.1, 3.0]), rtol=RTOL)


def test_only_the_order_of_the_losses_matters(measured):
    losses = np.random.default_rng(0).uniform(0, 5, 40)
    first, second = (PerplexityMiddle().score(measured(40, losses=some)) for some in (losses, losses**3))
    assert np.array_equal(first.score, second.score)
    assert PerplexityMiddle().requests == {BaseModelLosses()}
