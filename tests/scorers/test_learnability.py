import numpy as np

from gradfiltering.requests import GradientLog
from gradfiltering.scorers.learnability import Learnability


def test_is_the_fall_of_the_members_mean_loss(norms, evidence):
    losses = np.full((2, 5, 7), 2.0)
    losses[1, :, 3] = [0.5, 0.5, 1.0, 1.0, 2.0]  # mean 1.0
    losses[1, :, 6] = 2.5
    scores = Learnability().score(evidence(*norms, losses=losses))
    assert scores.score.tolist() == [0, 0, 0, 1, 0, 0, -0.5]
    assert scores.columns["loss_early"].tolist() == [2] * 7 and scores.columns["loss_late"][3] == 1


def test_norms_do_not_matter(norms, evidence):
    losses = np.random.default_rng(0).uniform(0, 3, (2, 5, 7))
    first = Learnability().score(evidence(*norms, losses=losses))
    second = Learnability().score(evidence(norms[1], norms[0], losses=losses))
    assert np.array_equal(first.score, second.score) and Learnability().requests == {GradientLog()}
