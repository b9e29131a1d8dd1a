import numpy as np

from gradfiltering.scorers.normalized_drop import NormalizedDrop
from tests.reference import scores as reference
from tests.scorers.checks import RTOL, GradientScorerChecks


class TestNormalizedDrop(GradientScorerChecks):
    scorer = NormalizedDrop
    twin = staticmethod(reference.normalized_drop)

    def scalar(self, early, late):
        return 1 - late[0].astype(float) / early[0]

    def test_closed_form(self, evidence):
        # Means 3 -> 1.5 and 1 -> 2.5: it is the drop of the mean, not the mean of the members' drops.
        early, late = [[2.0, 1.0], [4.0, 1.0]], [[1.0, 2.0], [2.0, 3.0]]
        found = NormalizedDrop(1e-12, 0).score(evidence(early, late)).score
        np.testing.assert_allclose(found, [0.5, -1.5], rtol=RTOL, atol=0)

    def test_scale_of_the_norms_does_not_matter(self, norms, evidence):
        scorer = NormalizedDrop(1e-12, 0)
        scaled = scorer.score(evidence(*(norm * 4 for norm in norms))).score
        np.testing.assert_allclose(scaled, scorer.score(evidence(*norms)).score, rtol=RTOL, atol=0)

    def test_epsilon(self, evidence):
        found = NormalizedDrop(1.0, 0).score(evidence([[3.0, 0.0]], [[1.0, 0.0]])).score
        np.testing.assert_allclose(found, [0.5, 0.0], rtol=RTOL, atol=0)
