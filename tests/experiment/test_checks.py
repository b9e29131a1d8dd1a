from types import SimpleNamespace

import pytest
import torch

from gradfiltering.ensembles.dropout_ensemble import DropoutEnsemble
from gradfiltering.ensembles.snapshots import SnapshotPair
from gradfiltering.errors import UserError
from gradfiltering.evidence.adaptive_size import AdaptiveSize
from gradfiltering.experiment import checks
from gradfiltering.experiment.checks import check_experiment, warn_of_judging_on_validation
from gradfiltering.experiment.parts import Experiment
from gradfiltering.judging.generation import GenerationSettings
from gradfiltering.methods.lead.curriculum import LeadSettings
from gradfiltering.methods.lead.lead_method import Lead
from gradfiltering.methods.score_and_select import ScoreAndSelect
from gradfiltering.models import language_model
from gradfiltering.models.objectives import DirectPreference, ResponseNLL
from gradfiltering.reports.page.settings import PageSettings
from gradfiltering.scorers.gsnr import GSNR
from gradfiltering.scorers.ifd import IFD
from gradfiltering.scorers.less import LESS
from gradfiltering.selectors.facility_location import FacilityLocationSelector
from gradfiltering.selectors.random import RandomSelector
from gradfiltering.selectors.top import TopSelector
from gradfiltering.selectors.two_stage import TwoStageSelector
from tests.support.small_ensembles import ensemble_of_kind, small_ensemble
from tests.support.small_targets import tuning_settings

TOP = TopSelector(0.5, None)
TWO_STAGE = TwoStageSelector(0.1, None, TOP, FacilityLocationSelector(0.1, None, "euclidean"))
LEAD = Lead(LeadSettings(IFD(), False, 3, 0.1, 0.1, 0.2, 4), TOP)


def less_on(validation):
    return LESS([1, 2], 1, validation, "auto", "max")


def experiment_of(method, until="select", ensemble=None, max_new_tokens=8, baselines=("full",), tuning=None):
    """The parts of an experiment that are looked at before anything is loaded."""
    base_model = SimpleNamespace(check=lambda: None, context_length=256)
    parts = dict.fromkeys(Experiment.__dataclass_fields__)
    parts["proxy"] = SimpleNamespace(
        base_model=base_model, size=AdaptiveSize(), ensemble=ensemble or small_ensemble(), snapshots=SnapshotPair(1, 2)
    )
    parts["proxy"].objective = ResponseNLL()
    parts["target"] = SimpleNamespace(base_model=base_model, baselines=baselines, tuning=tuning or tuning_settings())
    parts["page"] = PageSettings()
    parts["judging"] = SimpleNamespace(generation=GenerationSettings(max_new_tokens, 8))
    return Experiment(**{**parts, "until": until, "method": method})


@pytest.mark.parametrize(("until", "is_refused"), [("judge", True), ("target", False)])
def test_answers_without_room_for_a_prompt_are_refused(until, is_refused):
    method = ScoreAndSelect(GSNR(), TOP)
    check_experiment(experiment_of(method, until, max_new_tokens=255))
    if is_refused:
        with pytest.raises(UserError, match=r"max_new_tokens is 256, but the model's context holds 256"):
            check_experiment(experiment_of(method, until, max_new_tokens=256))
    else:
        check_experiment(experiment_of(method, until, max_new_tokens=256))


@pytest.mark.parametrize(("method", "is_refused"), [(ScoreAndSelect(GSNR(), TOP), True), (LEAD, False)])
def test_a_quantised_model_is_refused_as_proxy_only(method, is_refused):
    experiment = experiment_of(method, "target")
    experiment.proxy.base_model.quantization = "4bit"
    if is_refused:
        with pytest.raises(UserError, match=r"proxy's weights would be quantised \(4bit\).*only a target") as refusal:
            check_experiment(experiment)
        assert refusal.value.owner is experiment.proxy.base_model
    else:
        check_experiment(experiment)


def test_unknown_baselines_are_refused_where_the_run_trains_any():
    method = ScoreAndSelect(GSNR(), TOP)
    with pytest.raises(UserError, match=r"unknown baselines \['half'\]"):
        check_experiment(experiment_of(method, "target", baselines=["half"]))
    check_experiment(experiment_of(method, "select", baselines=["half"]))


@pytest.mark.parametrize("until", ["proxy", "score", "select"])
def test_lead_that_ends_before_its_target_is_refused(until):
    with pytest.raises(UserError, match=f"ends with the stage {until}.*selects rows while the target trains"):
        check_experiment(experiment_of(LEAD, until))


def test_less_on_members_that_are_not_trained_is_refused():
    passes = ensemble_of_kind(DropoutEnsemble, dropout=0.1, train_dropout=0.0)
    with pytest.raises(UserError, match=r"DropoutEnsemble with gradients of 1 members.*LoRA or bootstrap"):
        check_experiment(experiment_of(ScoreAndSelect(less_on(None), TWO_STAGE), ensemble=passes))
    check_experiment(experiment_of(ScoreAndSelect(less_on(None), TWO_STAGE)))
    check_experiment(experiment_of(ScoreAndSelect(GSNR(), TWO_STAGE), ensemble=passes))
    check_experiment(experiment_of(ScoreAndSelect(less_on(None), RandomSelector(0.1, None)), ensemble=passes))


def test_judging_on_the_rows_of_the_score_is_warned_of():
    heldout, tasks = SimpleNamespace(prompt_set="heldout"), SimpleNamespace(prompt_set="tasks")
    fitted_to_heldout = experiment_of(ScoreAndSelect(less_on(None), TOP), "report")
    (warning,) = warn_of_judging_on_validation(fitted_to_heldout, [tasks, heldout])
    assert "favours the candidate" in warning and "name a file of validation rows" in warning
    assert warn_of_judging_on_validation(fitted_to_heldout, [tasks, SimpleNamespace(prompt_set="heldout_code")])
    assert warn_of_judging_on_validation(fitted_to_heldout, [tasks]) == []
    for scorer in (less_on("own.jsonl"), GSNR()):
        assert warn_of_judging_on_validation(experiment_of(ScoreAndSelect(scorer, TOP)), [heldout]) == []


def test_bf16_is_warned_of_where_a_device_emulates_it(monkeypatch):
    experiment = experiment_of(ScoreAndSelect(GSNR(), TOP), "target")
    experiment.target.base_model = SimpleNamespace(precision="bf16")
    experiment.proxy.base_model = SimpleNamespace(precision="auto")
    for fastest, warned in (("bf16", []), ("fp32", ["target"])):
        monkeypatch.setattr(language_model, "fastest_precision", lambda device, fastest=fastest: fastest)
        warnings = checks.warn_of_emulated_precision(experiment, torch.device("cpu"))
        assert [text.split()[1] for text in warnings] == warned
        assert all("target.base_model.precision=fp32" in text for text in warnings)
    selecting = experiment_of(ScoreAndSelect(GSNR(), TOP), "select")
    selecting.target.base_model = SimpleNamespace(precision="bf16")
    assert checks.warn_of_emulated_precision(selecting, torch.device("cpu")) == [], "the run loads no target"


@pytest.mark.parametrize(
    ("until", "processes", "quantization", "objective", "message"),
    [
        ("target", 2, None, ResponseNLL(), ""),
        ("target", 1, None, ResponseNLL(), "there is only one; start several"),
        ("judge", 2, None, ResponseNLL(), "end the run with the stage target"),
        ("target", 2, "4bit", ResponseNLL(), ""),
        ("target", 2, "8bit", ResponseNLL(), "take 4bit or weights that are not quantised"),
        ("target", 2, None, DirectPreference(0.5), "learn from responses"),
    ],
    ids=["right", "one process", "answers", "4 bits", "8 bits", "preferences"],
)
def test_sharded_weights_are_refused_where_they_must_be_whole(
    until, processes, quantization, objective, message, monkeypatch
):
    tuning = tuning_settings(shard_weights=True)
    experiment = experiment_of(LEAD if quantization else ScoreAndSelect(GSNR(), TOP), until, tuning=tuning)
    experiment.target.base_model = SimpleNamespace(**vars(experiment.target.base_model), quantization=quantization)
    experiment.proxy.objective = objective
    monkeypatch.setattr(checks, "world_size", lambda: processes)
    if not message:
        check_experiment(experiment)
        return
    with pytest.raises(UserError, match=message) as refused:
        check_experiment(experiment)
    assert refused.value.owner is tuning and refused.value.arguments == ("shard_weights",)
