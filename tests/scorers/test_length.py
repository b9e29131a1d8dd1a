import numpy as np

from gradfiltering.scorers.length import LengthScorer


def test_the_longest_response_is_first(measured):
    scores = LengthScorer().score(measured(3, response_tokens=[4, 9, 2]))
    assert scores.score.tolist() == [4, 9, 2] and scores.score.dtype == np.float64
    assert scores.rank.tolist() == [2, 1, 3] and scores.example_ids.tolist() == [0, 2, 4]


def test_needs_nothing():
    assert LengthScorer().requests == frozenset()
    LengthScorer().check_members(1)
