import numpy as np

from gradfiltering.scorers.el2n import EL2N


def test_the_largest_error_is_first(bare):
    scores = EL2N().score(bare(3, el2n=np.asarray([0.5, 1.2, 0.1])))
    assert scores.score.tolist() == [0.5, 1.2, 0.1] and scores.rank.tolist() == [2, 1, 3]
    assert EL2N().needs == {"el2n"}
