import numpy as np

from gradfiltering.scorers.inverse_variance import InverseVariance
from tests.reference import scores as reference
from tests.scorers.checks import RTOL, GradientScorerChecks


class TestInverseVariance(GradientScorerChecks):
    scorer = InverseVariance
    twin = staticmethod(reference.inverse_variance)

    def test_closed_form(self, evidence):
        early, late = [[9.0, 1.0], [9.0, 1.0]], [[0.5, 1.0], [1.5, 1.0]]
        np.testing.assert_allclose(
            InverseVariance(0.25, 0).score(evidence(early, late)).score, [2.0, 4.0], rtol=RTOL, atol=0
        )

    def test_the_early_epoch_does_not_matter(self, norms, evidence):
        early, late = norms
        scorer = InverseVariance(1e-8, 0)
        other = scorer.score(evidence(early * 2, late)).score
        assert np.array_equal(scorer.score(evidence(early, late)).score, other)
