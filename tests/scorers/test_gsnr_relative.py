import numpy as np
from tests.reference import scores as reference
from tests.scorers.checks import RTOL, GradientScorerChecks

from gradfiltering.scorers.gsnr_relative import RelativeGSNR


class TestRelativeGSNR(GradientScorerChecks):
    scorer = RelativeGSNR
    twin = staticmethod(reference.gsnr_relative)

    def test_closed_form(self, evidence):
        # G_s = 4, G_t = 2, V_t = 1: (4 - 2)/4 / (1/4) = 2.
        found = RelativeGSNR(1e-12, 0).score(evidence([[4.0], [4.0]], [[1.0], [3.0]])).score
        np.testing.assert_allclose(found, [2.0], rtol=RTOL, atol=0)

    def test_scale_of_the_norms_does_not_matter(self, norms, evidence):
        scorer = RelativeGSNR(1e-12, 0)
        scaled = scorer.score(evidence(*(norm * 4 for norm in norms), name="scaled")).score
        np.testing.assert_allclose(scaled, scorer.score(evidence(*norms)).score, rtol=1e-6, atol=0)
