import numpy as np
import pytest

from gradfiltering.errors import UserError
from gradfiltering.requests import GradientLog
from gradfiltering.scorers.gsnr import GSNR
from gradfiltering.scorers.length import LengthScorer
from gradfiltering.scorers.length_controlled import LengthControlled, length_bins
from gradfiltering.scorers.loss import LossScorer


def test_ranks_are_within_the_bin(measured):
    losses = np.asarray([1.0, 2.0, 3.0, 30.0, 10.0, 20.0])
    given = measured(6, response_tokens=[2, 2, 2, 9, 9, 9], losses=losses)
    scores = LengthControlled(LossScorer(), 2).score(given)
    np.testing.assert_allclose(scores.score, [1 / 3, 2 / 3, 1, 1, 1 / 3, 2 / 3])
    assert scores.columns["base_score"].tolist() == losses.tolist()
    assert scores.columns["length_bin"].tolist() == [0, 0, 0, 1, 1, 1]


def test_a_score_that_is_length_carries_nothing_more(measured):
    lengths = np.repeat(np.arange(1, 11), 20)
    scores = LengthControlled(LengthScorer(), 10).score(measured(200, response_tokens=lengths))
    assert len(set(scores.score.tolist())) == 1


def test_one_bin_keeps_the_order(measured):
    losses = np.random.default_rng(0).uniform(0, 3, 20)
    given = measured(20, response_tokens=np.arange(1, 21), losses=losses)
    assert np.array_equal(LengthControlled(LossScorer(), 1).score(given).rank, LossScorer().score(given).rank)


def test_equal_lengths_share_a_bin_and_bins_are_of_like_size():
    lengths = np.random.default_rng(1).permutation(1000)
    assert np.bincount(length_bins(lengths, 10)).tolist() == [100] * 10
    assert len(set(length_bins(np.full(50, 7), 10).tolist())) == 1


def test_needs_and_refuses_what_the_base_does():
    scorer = LengthControlled(GSNR(1e-8, 0), 5)
    assert scorer.requests == {GradientLog()}
    with pytest.raises(UserError, match="needs the variance over members"):
        scorer.check_members(1)
    with pytest.raises(UserError, match="bins must be a positive"):
        LengthControlled(LossScorer(), 0)
