import numpy as np

from gradfiltering.requests import BaseModelLosses
from gradfiltering.scorers.loss import LossScorer


def test_the_hardest_row_is_first(measured):
    scores = LossScorer().score(measured(3, losses=np.asarray([1.5, 0.25, 3.0])))
    assert scores.score.tolist() == [1.5, 0.25, 3.0] and scores.rank.tolist() == [2, 3, 1]


def test_needs_the_losses_of_the_base_model_alone():
    assert LossScorer().requests == {BaseModelLosses()}


def test_the_easiest_row_is_first_where_small_losses_are_preferred(measured):
    scores = LossScorer(prefer="small").score(measured(3, losses=np.asarray([1.5, 0.25, 3.0])))
    assert scores.score.tolist() == [-1.5, -0.25, -3.0] and scores.rank.tolist() == [2, 1, 3]
