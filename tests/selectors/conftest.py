import numpy as np
import pytest

from gradfiltering.scorers.base import Scores

TOTAL = 25
IDS = np.asarray([position for position in range(TOTAL) if position % 6 != 4])  # four rows are unscored


@pytest.fixture
def ids():
    return IDS


@pytest.fixture
def scores():
    return Scores(IDS, np.random.default_rng(1).normal(size=len(IDS)))
