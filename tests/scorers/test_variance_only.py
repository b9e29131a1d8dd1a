import numpy as np

from gradfiltering.scorers.variance_only import VarianceOnly
from tests.reference import scores as reference
from tests.scorers.checks import RTOL, GradientScorerChecks


class TestVarianceOnly(GradientScorerChecks):
    scorer = VarianceOnly
    twin = staticmethod(reference.variance_only)

    def test_closed_form(self, evidence):
        # G_s = 2, G_t = 1, V_t = 0.25 and the same with G_s = 3.
        early, late = [[2.0, 3.0], [2.0, 3.0]], [[0.5, 0.5], [1.5, 1.5]]
        found = VarianceOnly(1e-12, 0).score(evidence(early, late)).score
        np.testing.assert_allclose(found, [4.0, 8.0], rtol=RTOL, atol=0)

    def test_epsilon(self, evidence):
        early, late = [[2.0], [2.0]], [[1.0], [1.0]]
        np.testing.assert_allclose(VarianceOnly(0.5, 0).score(evidence(early, late)).score, [2.0], rtol=RTOL, atol=0)
