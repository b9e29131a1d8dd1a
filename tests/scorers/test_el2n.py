import numpy as np

from gradfiltering.requests import ErrorNorms
from gradfiltering.scorers.el2n import EL2N


def test_the_largest_error_is_first(measured):
    scores = EL2N().score(measured(3, error_norms=np.asarray([0.5, 1.2, 0.1])))
    assert scores.score.tolist() == [0.5, 1.2, 0.1] and scores.rank.tolist() == [2, 1, 3]
    assert EL2N().requests == {ErrorNorms()}
