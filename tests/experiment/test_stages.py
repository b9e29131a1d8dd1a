import re
from types import SimpleNamespace

import pytest
from tests.support.small_ensembles import ensemble_of_kind, small_ensemble

from gradfiltering.ensembles.dropout_ensemble import DropoutEnsemble
from gradfiltering.errors import UserError
from gradfiltering.experiment.stages import Plan, choose_method
from gradfiltering.judging.generation import GenerationSettings
from gradfiltering.methods.lead.curriculum import LeadSettings
from gradfiltering.methods.lead.lead_method import Lead
from gradfiltering.methods.score_and_select import ScoreAndSelect
from gradfiltering.scorers.gsnr import GSNR
from gradfiltering.scorers.ifd import IFD
from gradfiltering.scorers.less import LESS
from gradfiltering.selectors.facility_location import FacilityLocationSelector
from gradfiltering.selectors.random import RandomSelector
from gradfiltering.selectors.top import TopSelector
from gradfiltering.selectors.two_stage import TwoStageSelector

TOP, COVER = TopSelector(0.5, None), FacilityLocationSelector(0.1, None, "euclidean")
BOTH = TwoStageSelector(0.1, None, TOP, COVER)
IFD_SCORER = IFD("perplexity", "plain", 1024, 1.0)
LESS_SCORER, OWN_ROWS = (LESS([1, 2], 1, path, "auto", "max") for path in (None, "own.jsonl"))


LEAD = LeadSettings(IFD_SCORER, False, 3, 0.1, 0.1, 0.2, 4)


def make_plan(until, scorer, selector, target_data="subset"):
    return Plan(until, choose_method(target_data, until, scorer, selector, LEAD))


def test_method_follows_the_training_data_and_the_last_stage():
    assert choose_method("lead", "report", GSNR(), TOP, LEAD) == Lead(LEAD, TOP)
    assert choose_method("subset", "select", GSNR(), TOP, LEAD) == ScoreAndSelect(GSNR(), TOP)
    assert choose_method("subset", "score", GSNR(), TOP, LEAD) == ScoreAndSelect(GSNR(), TOP, selects=False)


def test_gradients_at_checkpoints_are_told_from_other_needs():
    assert make_plan("select", LESS_SCORER, BOTH).influences == [LESS_SCORER.gradients_request]
    assert make_plan("select", GSNR(1e-8, 0), BOTH).influences == []


def test_judging_by_the_rows_that_the_score_was_fitted_to_is_warned_of():
    heldout, tasks = SimpleNamespace(prompt_set="heldout"), SimpleNamespace(prompt_set="tasks")
    (warning,) = make_plan("report", LESS_SCORER, TOP).judged_on_validation([tasks, heldout])
    assert "favours the candidate" in warning and "scorer.validation=FILE" in warning
    assert make_plan("report", LESS_SCORER, TOP).judged_on_validation([tasks]) == []
    assert make_plan("report", OWN_ROWS, TOP).judged_on_validation([heldout]) == []
    assert make_plan("report", GSNR(1e-8, 0), TOP).judged_on_validation([heldout]) == []


@pytest.mark.parametrize(("until", "refused"), [("judge", True), ("target", False)])
def test_answers_that_leave_no_room_for_a_prompt_are_refused_before_any_training(until, refused):
    base_model = SimpleNamespace(check=lambda: None, context=256)
    plan = make_plan(until, GSNR(1e-8, 0), TOP)
    plan.check(5, None, base_model, base_model, ["full"], GenerationSettings(255, 8))
    if refused:
        with pytest.raises(UserError, match=r"max_new_tokens is 256, but the model's context holds 256"):
            plan.check(5, None, base_model, base_model, ["full"], GenerationSettings(256, 8))
    else:
        plan.check(5, None, base_model, base_model, ["full"], GenerationSettings(256, 8))
    with pytest.raises(UserError, match=r"max_new_tokens must be a positive"):
        GenerationSettings(0, 8)


@pytest.mark.parametrize("until", ["proxy", "score", "select"])
def test_a_run_that_ends_before_its_target_chooses_is_refused_with_a_remedy(until):
    with pytest.raises(UserError, match=f"until={until}.*until=target"):
        make_plan(until, IFD_SCORER, TOP, "lead")


def test_unknown_training_data_is_refused():
    with pytest.raises(UserError, match=r"target\.data=leed.*subset, lead"):
        make_plan("report", IFD_SCORER, TOP, "leed")


@pytest.mark.parametrize(
    "override",
    ["scorer=gsnr", "scorer.epsilon=1e-6", "+scorer@scorer.parts.el2n=el2n", "selector=stratified",
     "selector.by=source", "method=spice"],
)  # fmt: skip
def test_a_way_of_choosing_beside_a_target_that_chooses_is_refused(override):
    asked = ["target.data=lead", override, "seed=1"]
    with pytest.raises(UserError, match=rf"{re.escape(override)} has no effect with target\.data=lead.*data=subset"):
        make_plan("target", IFD_SCORER, TOP, "lead").check_asked(asked)
    make_plan("target", IFD_SCORER, TOP).check_asked(asked)


def test_what_a_target_that_chooses_looks_at_may_be_asked_for():
    budget = ["selector.fraction=null", "selector.count=5"]
    make_plan("target", IFD_SCORER, TOP, "lead").check_asked(
        ["method=lead", "seed=1", *budget, "scorer@target.lead.difficulty=loss", "target.lead.difficulty.limit=null"]
    )


def test_a_score_by_influence_of_members_that_are_not_trained_is_refused_before_anything_is_loaded():
    base_model = SimpleNamespace(check=lambda: None, context=256)
    passes = ensemble_of_kind(DropoutEnsemble, dropout=0.1, train_dropout=0.0)
    rest = (base_model, base_model, ["full"], GenerationSettings(8, 8))
    with pytest.raises(UserError, match=r"DropoutEnsemble with gradients of 1 members.*LoRA or bootstrap"):
        make_plan("select", LESS_SCORER, BOTH).check(3, passes, *rest)
    make_plan("select", LESS_SCORER, BOTH).check(3, small_ensemble(), *rest)
    make_plan("select", GSNR(1e-8, 0), BOTH).check(3, passes, *rest)
    make_plan("select", LESS_SCORER, RandomSelector(0.1, None)).check(3, passes, *rest)
