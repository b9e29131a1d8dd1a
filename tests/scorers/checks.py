"""What every scorer of the G-SNR family must do; each mirrored test module adds its own closed-form cases."""

import itertools

import numpy as np
import pytest

from gradfiltering.errors import UserError
from gradfiltering.requests import GradientLog
from tests.reference import scores as reference

RTOL = 1e-9  # float64 sums in another order
VARIANCE_RTOL = 1e-6  # a variance of nearly equal numbers cancels


class GradientScorerChecks:
    """Subclass with `scorer` (class) and `twin` (function of `tests.reference.scores`)."""

    scorer: type
    twin: staticmethod

    @pytest.mark.parametrize(("epsilon", "ddof"), [(1e-8, 0), (1e-8, 1), (0.5, 0)])
    def test_agrees_with_the_slow_twin(self, epsilon, ddof, norms, evidence):
        found = self.scorer(epsilon, ddof).score(evidence(*norms))
        expected = self.twin(*(norm.tolist() for norm in norms), epsilon, ddof)
        np.testing.assert_allclose(found.score, expected, rtol=VARIANCE_RTOL, atol=0)
        assert found.rank.tolist() == reference.ranks(found.example_ids.tolist(), found.score.tolist())

    def test_order_of_members_does_not_matter(self, norms, evidence):
        scorer = self.scorer(1e-8, 0)
        base = scorer.score(evidence(*norms)).score
        for order in itertools.islice(itertools.permutations(range(5)), 1, 120, 17):
            early, late = (norm[list(order)] for norm in norms)
            found = scorer.score(evidence(early, late)).score
            np.testing.assert_allclose(found, base, rtol=RTOL, atol=0, err_msg=f"members in order {order}")

    def test_an_examples_score_does_not_depend_on_the_others(self, norms, evidence):
        scorer = self.scorer(1e-8, 0)
        few = scorer.score(evidence(*(norm[:, :3] for norm in norms))).score
        np.testing.assert_allclose(few, scorer.score(evidence(*norms)).score[:3], rtol=RTOL, atol=0)

    def test_statistics_stand_beside_the_scores(self, norms, evidence):
        early, late = norms
        found = self.scorer(1e-8, 0).score(evidence(early, late))
        assert set(found.columns) == {"g_early", "g_late", "variance_late"}
        expected = {
            "g_early": reference.mean_over_members(early.tolist()),
            "g_late": reference.mean_over_members(late.tolist()),
            "variance_late": reference.variance_over_members(late.tolist(), 0),
        }
        for name, column in expected.items():
            assert found.columns[name].dtype == np.float64, f"{name} is not computed in float64"
            np.testing.assert_allclose(found.columns[name], column, rtol=RTOL, atol=0, err_msg=name)

    def test_ids_are_those_of_the_log(self, norms, evidence):
        given = evidence(*norms)
        assert np.array_equal(self.scorer(1e-8, 0).score(given).example_ids, given.example_ids)

    def test_one_member(self, norms, evidence):
        """Without a second member there is no variance: an error with a remedy, or a score that needs none."""
        early, late = (norm[:1] for norm in norms)
        scorer = self.scorer(1e-8, 0)
        if self.scorer.uses_variance:
            with pytest.raises(UserError, match=r"needs the variance over members, and there is one.*raw_drop"):
                scorer.score(evidence(early, late))
            return
        found = scorer.score(evidence(early, late))
        np.testing.assert_allclose(found.score, self.scalar(early, late), rtol=VARIANCE_RTOL, atol=0)
        assert np.isnan(found.columns["variance_late"]).all(), "one member's variance is unknown, not 0"

    def scalar(self, early, late):
        """The score of a single member's norms, for scorers that do without a variance."""
        raise NotImplementedError

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_a_norm_that_is_not_finite_is_refused_by_row(self, value, norms, evidence):
        early, late = norms
        early[2, 3] = late[2, 3] = value
        with (
            np.errstate(invalid="ignore"),
            pytest.raises(UserError, match=r"1 scores are not finite, first at rows \[7\]"),
        ):
            self.scorer(1e-8, 0).score(evidence(early, late))

    @pytest.mark.parametrize(
        ("epsilon", "ddof", "message"), [(0.0, 0, "epsilon must be a positive"), (1e-8, 2, "ddof must be one of: 0, 1")]
    )
    def test_settings_out_of_range(self, epsilon, ddof, message):
        with pytest.raises(UserError, match=message):
            self.scorer(epsilon, ddof)

    def test_requests_the_gradient_log(self):
        assert self.scorer.requests == {GradientLog()}
