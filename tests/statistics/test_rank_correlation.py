import numpy as np
from scipy.stats import rankdata

from gradfiltering.statistics.rank_correlation import spearman_correlation


def test_equals_the_correlation_of_ranks_with_ties():
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.integers(0, 6, 30).astype(float), rng.normal(size=30)
        expected = np.corrcoef(rankdata(first), rankdata(second))[0, 1]
        np.testing.assert_allclose(spearman_correlation(first, second), expected, rtol=1e-12)


def test_is_unknown_where_a_side_does_not_vary():
    rising = np.arange(5.0)
    assert spearman_correlation(np.ones(5), rising) is None
    assert spearman_correlation(rising, np.ones(5)) is None
    assert spearman_correlation(rising[:2], rising[:2]) is None
