import numpy as np
from scipy.stats import kstest

from gradfiltering.requests import Evidence
from gradfiltering.scorers.random import RandomScorer

LEAST_P_VALUE = 1e-3


def score(seed=0, count=500):
    return RandomScorer().score(Evidence(np.arange(count) * 2, seed, np.ones(count), np.ones(count)))


def test_needs_nothing_and_adds_no_statistics():
    assert RandomScorer.requests == frozenset() and score().columns == {}


def test_depends_on_the_seed_alone():
    assert np.array_equal(score().score, score().score)
    assert not np.array_equal(score().score, score(seed=1).score)
    assert np.array_equal(score().example_ids, np.arange(500) * 2)


def test_is_uniform():
    found = score().score
    assert len(set(found.tolist())) == 500 and found.dtype == np.float64
    assert kstest(found, "uniform").pvalue > LEAST_P_VALUE
