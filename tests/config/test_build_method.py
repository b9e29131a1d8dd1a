import re

import pytest

from gradfiltering.config.build import build_method
from gradfiltering.config.composition import composed
from gradfiltering.errors import UserError
from gradfiltering.methods.lead.lead_method import Lead
from gradfiltering.methods.score_and_select import ScoreAndSelect


def method_of(*overrides, asked=()):
    with composed(list(overrides)) as cfg:
        return build_method(cfg, asked)


def test_method_follows_the_training_data_and_the_last_stage():
    assert isinstance(method_of("target.data=lead"), Lead)
    assert method_of("until=select").selects
    score_only = method_of("until=score")
    assert isinstance(score_only, ScoreAndSelect) and not score_only.selects


def test_unknown_training_data_is_refused():
    with pytest.raises(UserError, match=r"target\.data=leed.*subset, lead"):
        method_of("target.data=leed")


def test_unknown_last_stage_is_refused():
    with pytest.raises(UserError, match=r"until=selct is no stage; choose one of: proxy, score, select"):
        method_of("until=selct")


@pytest.mark.parametrize("until", ["proxy", "score", "select"])
def test_lead_that_ends_before_its_target_is_refused(until):
    with pytest.raises(UserError, match=f"until={until}.*until=target"):
        method_of("target.data=lead", f"until={until}")


@pytest.mark.parametrize(
    "override",
    [
        "scorer=gsnr",
        "scorer.epsilon=1e-6",
        "+scorer@scorer.parts.el2n=el2n",
        "selector=stratified",
        "selector.by=source",
        "method=spice",
    ],
)
def test_another_selection_beside_lead_is_refused(override):
    asked = ["target.data=lead", override, "seed=1"]
    with pytest.raises(UserError, match=rf"{re.escape(override)} has no effect with target\.data=lead.*data=subset"):
        method_of("target.data=lead", asked=asked)
    method_of(asked=asked)


def test_budget_and_difficulty_of_lead_may_be_given():
    budget = ["selector.fraction=null", "selector.count=5"]
    difficulty = ["scorer@target.lead.difficulty=loss", "target.lead.difficulty.limit=null"]
    asked = ["method=lead", "seed=1", *budget, *difficulty]
    assert isinstance(method_of("target.data=lead", asked=asked), Lead)
