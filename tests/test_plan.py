from types import SimpleNamespace

import pytest

from gradfiltering.errors import UserError
from gradfiltering.plan import Plan
from gradfiltering.proxy.bare import AnswerLosses
from gradfiltering.scorers.gsnr import GSNR
from gradfiltering.scorers.ifd import IFD
from gradfiltering.selectors.facility_location import FacilityLocationSelector
from gradfiltering.selectors.random import RandomSelector
from gradfiltering.selectors.top import TopSelector
from gradfiltering.selectors.two_stage import TwoStageSelector

TOP, COVER = TopSelector(0.5, None), FacilityLocationSelector(0.1, None, "euclidean")
IFD_SCORER = IFD("perplexity", "plain", 1024, 1.0)


@pytest.mark.parametrize(
    ("until", "scorer", "selector", "needs"),
    [
        ("report", GSNR(1e-8, 0), TOP, {"gradient_log"}),
        ("select", IFD_SCORER, TOP, {AnswerLosses("plain", 1024)}),
        ("select", GSNR(1e-8, 0), RandomSelector(0.1, None), set()),
        ("select", GSNR(1e-8, 0), COVER, {"embeddings"}),
        ("score", GSNR(1e-8, 0), COVER, {"gradient_log"}),
        ("proxy", GSNR(1e-8, 0), RandomSelector(0.1, None), {"gradient_log"}),
        ("select", IFD_SCORER, TwoStageSelector(0.1, None, TOP, COVER), {AnswerLosses("plain", 1024), "embeddings"}),
    ],
)
def test_only_what_somebody_within_the_run_looks_at_is_needed(until, scorer, selector, needs):
    assert Plan(until, scorer, selector).needs == needs


def test_scores_are_no_need_of_the_proxys():
    assert "scores" not in Plan("select", SimpleNamespace(needs=frozenset()), TOP).needs


def test_a_target_that_chooses_its_rows_needs_what_they_are_to_the_bare_model_and_no_ensemble():
    plan = Plan("target", IFD_SCORER, COVER, "lead")
    assert plan.needs == {AnswerLosses("plain", 1024), "losses"} and plan.scored and plan.leads


@pytest.mark.parametrize("until", ["proxy", "score", "select"])
def test_a_run_that_ends_before_its_target_chooses_is_refused_with_a_remedy(until):
    with pytest.raises(UserError, match=f"until={until}.*until=target"):
        Plan(until, IFD_SCORER, TOP, "lead")


def test_unknown_training_data_is_refused():
    with pytest.raises(UserError, match=r"target\.data=leed.*subset, lead"):
        Plan("report", IFD_SCORER, TOP, "leed")
