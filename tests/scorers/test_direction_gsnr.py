import numpy as np
import pytest

from gradfiltering.errors import UserError
from gradfiltering.requests import GradientLog, Projections
from gradfiltering.scorers.direction_gsnr import DirectionGSNR, mean_cosines
from gradfiltering.scorers.gsnr import GSNR

RTOL = 1e-6  # float32 projections


def cosines_one_by_one(projections):
    found = []
    for row in range(projections.shape[1]):
        own = []
        for member in projections.astype(float):
            mean = sum(member) / len(member)
            own.append(member[row] @ mean / np.sqrt((member[row] @ member[row]) * (mean @ mean)))
        found.append(sum(own) / len(own))
    return found


def test_agrees_with_cosines_made_one_by_one(norms, evidence):
    made = np.random.default_rng(0).normal(0.3, 1, (5, 7, 6)).astype(np.float32)
    given = evidence(*norms, projections=made)
    scores = DirectionGSNR(1e-8, 0, 0.4).score(given)
    expected = np.asarray(cosines_one_by_one(made))
    np.testing.assert_allclose(scores.columns["cosine"], expected, rtol=RTOL, atol=1e-7)
    plain = GSNR(1e-8, 0).score(given).score
    np.testing.assert_allclose(scores.score, plain - 0.4 * np.abs(plain) * (1 - expected) / 2, rtol=RTOL)


def test_without_weight_it_is_gsnr(norms, evidence):
    given = evidence(*norms, projections=np.random.default_rng(1).normal(size=(5, 7, 3)))
    assert np.array_equal(DirectionGSNR(1e-8, 0, 0.0).score(given).score, GSNR(1e-8, 0).score(given).score)


def test_a_row_against_all_others_loses_its_score(evidence):
    made = np.ones((2, 4, 3))
    made[:, 3] = -1
    early, late = np.full((2, 4), 2.0), np.asarray([[0.5] * 4, [1.5] * 4])
    scores = DirectionGSNR(1e-8, 0, 1.0).score(evidence(early, late, projections=made))
    np.testing.assert_allclose(scores.columns["cosine"], [1, 1, 1, -1], rtol=RTOL)
    np.testing.assert_allclose(scores.score[3], 0, atol=1e-6)


@pytest.mark.parametrize(("drop", "sign"), [(0.5, 1), (-0.5, -1)])
def test_disagreement_never_raises_a_score(evidence, drop, sign):
    made = np.ones((2, 4, 3))
    made[:, 3] = -1
    made[:, 2] = [1, -1, 0]
    early = np.full((2, 4), 2.0)
    late = early - drop + np.array([[0.1], [-0.1]])
    given = evidence(early, late, projections=made)
    plain = GSNR(1e-8, 0).score(given).score
    scores = DirectionGSNR(1e-8, 0, 0.5).score(given).score
    assert (np.sign(plain) == sign).all() and plain[0] == plain[3]
    np.testing.assert_allclose(scores, plain - 0.25 * np.abs(plain) * (1 - mean_cosines(made)), rtol=RTOL)
    assert scores[0] > scores[2] > scores[3] and (scores <= plain).all()


def test_the_cosine_is_taken_inside_a_member():
    """Members whose bases are turned against each other give the same cosines; a mean over members would cancel."""
    made = np.random.default_rng(2).normal(0.5, 1, (1, 9, 4))
    turned = np.concatenate([made, -made[:, :, ::-1]])
    np.testing.assert_allclose(mean_cosines(turned), mean_cosines(made), rtol=1e-9)


def test_a_gradient_of_zero_has_no_direction():
    made = np.ones((1, 3, 2))
    made[0, 1] = 0
    assert mean_cosines(made)[1] == 0


def test_settings_and_need():
    assert DirectionGSNR(1e-8, 0, 0.5).requests == {GradientLog(), Projections()}
    with pytest.raises(UserError, match="direction must be a number in"):
        DirectionGSNR(1e-8, 0, 2.0)
