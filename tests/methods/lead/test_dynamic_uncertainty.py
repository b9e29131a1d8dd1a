"""IDU and the predicted change of a loss: equal to their plain twins, clamped, and right where gradients coincide."""

import math

import numpy as np
import pytest

from gradfiltering.methods.lead.dynamic_uncertainty import mix_gradients, predict_loss_change, smooth_uncertainty
from tests.reference import lead as reference

RTOL = 1e-6  # the twin searches β on a grid; the minimum is flat there


def squares(first: np.ndarray, last: np.ndarray) -> tuple[float, float, float]:
    """δ_{t−1}, δ_k and the cosine of the angle."""
    of_last, of_first = float(last @ last), float(first @ first)
    return of_last, of_first, float(first @ last) / math.sqrt(of_last * of_first)


@pytest.mark.parametrize("seed", range(30))
def test_the_predicted_change_is_that_of_the_shortest_mixture(seed):
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=5)
    first, last = (rng.uniform(0.1, 3) * (shared + rng.normal(size=5)) for _ in range(2))
    last_squared, first_squared, cosine = squares(first, last)
    found = predict_loss_change(0.02, last_squared, first_squared, cosine)
    assert found == pytest.approx(reference.predicted_change(0.02, last.tolist(), first.tolist()), rel=RTOL)
    assert -0.02 * min(last_squared, first_squared) - 1e-12 <= found <= 0


@pytest.mark.parametrize(("last", "first", "beta"), [((1.0, 0.0), (3.0, 0.5), 0.0), ((3.0, 0.5), (1.0, 0.0), 1.0)])
def test_beta_is_clamped_where_a_gradient_is_shorter_than_mixtures(last, first, beta):
    last_squared, first_squared, cosine = squares(np.array(first), np.array(last))
    assert mix_gradients(last_squared, first_squared, cosine) == beta
    found = predict_loss_change(1.0, last_squared, first_squared, cosine)
    assert found == pytest.approx(-min(last_squared, first_squared))


def test_orthogonal_opposite_and_equal_gradients():
    assert mix_gradients(1.0, 3.0, 0.0) == pytest.approx(0.25)
    assert predict_loss_change(1.0, 2.0, 2.0, -1.0) == pytest.approx(0.0)
    assert predict_loss_change(0.5, 2.0, 2.0, 1.0) == pytest.approx(-1.0)
    assert predict_loss_change(0.5, 0.0, 0.0, 1.0) == 0


def test_a_first_visit_knows_only_the_last_round():
    assert predict_loss_change(0.1, 3.0, None, 1.0) == pytest.approx(reference.predicted_change(0.1, [1, 1, 1], None))
    assert predict_loss_change(0.1, 0.0, None, 1.0) == 0, "before the first round nothing is predicted"


def test_idu_is_smoothed_as_the_twin_does_it():
    rng = np.random.default_rng(0)
    losses, before = rng.uniform(0, 5, 8), rng.uniform(0, 5, 8)
    expected = reference.smoothed(losses.tolist(), -0.3, before.tolist(), 0.1)
    np.testing.assert_allclose(smooth_uncertainty(losses, -0.3, before, 0.1), expected, rtol=1e-12)
