import numpy as np
import pytest

from gradfiltering.errors import UserError
from gradfiltering.requests import GradientLog
from gradfiltering.scorers.grad_norm import GradNorm
from tests.reference import scores as reference

RTOL = 1e-12


@pytest.mark.parametrize("at", ["early", "late"])
def test_is_the_mean_over_members_at_the_epoch(at, norms, evidence):
    expected = reference.mean_over_members((norms[0] if at == "early" else norms[1]).tolist())
    given = evidence(*norms)
    np.testing.assert_allclose(GradNorm(at, "large").score(given).score, expected, rtol=RTOL)
    np.testing.assert_allclose(-GradNorm(at, "small").score(given).score, expected, rtol=RTOL)


def test_one_member_is_enough(evidence):
    assert GradNorm("late", "large").score(evidence([[1.0, 2.0]], [[0.5, 4.0]])).score.tolist() == [0.5, 4.0]


def test_settings_and_need():
    assert GradNorm("early", "large").requests == {GradientLog()}
    with pytest.raises(UserError, match="at must be one of: early, late"):
        GradNorm("middle", "large")
    with pytest.raises(UserError, match="prefer must be one of: large, small"):
        GradNorm("early", "any")
