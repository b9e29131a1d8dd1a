import numpy as np

from gradfiltering.scorers.gsnr import GSNR
from tests.reference import scores as reference
from tests.scorers.checks import RTOL, GradientScorerChecks


class TestGSNR(GradientScorerChecks):
    scorer = GSNR
    twin = staticmethod(reference.gsnr)

    def test_closed_form(self, evidence):
        # G_s = 2, G_t = 1, V_t = 0.25: (2 - 1)/2 / 0.25 = 2; half the drop gives half the score.
        early, late = [[2.0, 2.0], [2.0, 2.0]], [[0.5, 1.0], [1.5, 2.0]]
        found = GSNR(1e-12, 0).score(evidence(early, late)).score
        np.testing.assert_allclose(found, [2.0, 1.0], rtol=RTOL, atol=0)

    def test_sample_variance_halves_the_score_of_two_members(self, evidence):
        early, late = [[2.0], [2.0]], [[0.5], [1.5]]
        np.testing.assert_allclose(GSNR(1e-12, 1).score(evidence(early, late)).score, [1.0], rtol=RTOL, atol=0)

    def test_epsilon_stands_in_both_denominators(self, evidence):
        # G_s = 2, G_t = 1, V_t = 0: (2 - 1)/(2 + 0.5) / (0 + 0.5) = 0.8; G_s = G_t = 0 gives 0, not 0/0.
        early, late = [[2.0, 0.0], [2.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]
        np.testing.assert_allclose(GSNR(0.5, 0).score(evidence(early, late)).score, [0.8, 0.0], rtol=RTOL, atol=0)

    def test_a_small_variance_turns_the_order_of_rising_norms_over(self, evidence):
        """The failure signature of METHODS.md: of two equal rises, the one the members agree on scores lower."""
        early, late = [[1.0, 1.0], [1.0, 1.0]], [[1.1, 1.4], [1.3, 1.0]]
        agreed, disputed = GSNR(1e-8, 0).score(evidence(early, late)).score
        assert agreed < disputed < 0
