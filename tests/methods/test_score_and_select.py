"""Requests of score-and-select and of LEAD: only measurements that something reads."""

import pytest

from gradfiltering.methods.lead.curriculum import LeadSettings
from gradfiltering.methods.lead.lead_method import Lead
from gradfiltering.methods.score_and_select import ScoreAndSelect
from gradfiltering.requests import BaseModelLosses, Embeddings, GradientLog, ResponseLosses
from gradfiltering.scorers.gsnr import GSNR
from gradfiltering.scorers.ifd import IFD
from gradfiltering.scorers.less import LESS
from gradfiltering.selectors.facility_location import FacilityLocationSelector
from gradfiltering.selectors.random import RandomSelector
from gradfiltering.selectors.top import TopSelector
from gradfiltering.selectors.two_stage import TwoStageSelector

TOP, COVER = TopSelector(0.5, None), FacilityLocationSelector(0.1, None, "euclidean")
BOTH, RANDOM = TwoStageSelector(0.1, None, TOP, COVER), RandomSelector(0.1, None)
IFD_SCORER, LESS_SCORER = IFD("perplexity", "plain", 1024, 1.0), LESS([1, 2], 1, None, "auto", "max")


@pytest.mark.parametrize(
    ("scorer", "selector", "selects", "requests"),
    [
        (GSNR(), TOP, True, {GradientLog()}),
        (IFD_SCORER, TOP, True, {ResponseLosses("plain", 1024)}),
        (GSNR(), RANDOM, True, set()),
        (GSNR(), COVER, True, {Embeddings()}),
        (GSNR(), COVER, False, {GradientLog()}),
        (GSNR(), RANDOM, False, {GradientLog()}),
        (LESS_SCORER, TOP, True, {LESS_SCORER.gradients_request}),
        (LESS_SCORER, BOTH, True, {LESS_SCORER.gradients_request, Embeddings()}),
        (IFD_SCORER, BOTH, True, {ResponseLosses("plain", 1024), Embeddings()}),
    ],
)
def test_only_measurements_that_are_read_are_requested(scorer, selector, selects, requests):
    method = ScoreAndSelect(scorer, selector, selects)
    assert method.requests == requests
    assert (method.scorer is None) == (selects and not selector.uses_scores)


def test_lead_requests_losses_and_difficulty_but_no_ensemble():
    method = Lead(LeadSettings(IFD_SCORER, False, 3, 0.1, 0.1, 0.2, 4), TopSelector(None, 5))
    assert method.requests == {ResponseLosses("plain", 1024), BaseModelLosses()}
    assert method.scorer == IFD_SCORER and method.budget_rows(100) == 5 and method.scoring_model == "target"
