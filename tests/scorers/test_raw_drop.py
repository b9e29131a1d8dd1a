import numpy as np

from gradfiltering.scorers.raw_drop import RawDrop
from tests.reference import scores as reference
from tests.scorers.checks import RTOL, GradientScorerChecks


class TestRawDrop(GradientScorerChecks):
    scorer = RawDrop
    twin = staticmethod(reference.raw_drop)

    def scalar(self, early, late):
        return early[0].astype(float) - late[0]

    def test_closed_form(self, evidence):
        early, late = [[2.0, 1.0], [4.0, 1.0]], [[1.0, 2.0], [2.0, 3.0]]
        np.testing.assert_allclose(RawDrop(1e-8, 0).score(evidence(early, late)).score, [1.5, -1.5], rtol=RTOL, atol=0)

    def test_epsilon_and_ddof_change_nothing(self, norms, evidence):
        given = evidence(*norms)
        assert np.array_equal(RawDrop(1e-8, 0).score(given).score, RawDrop(1.0, 1).score(given).score)
