"""Changes that make a long run shorter: what each saves, when it is named, and how it is told."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from gradfiltering.ensembles.bootstrap_ensemble import BootstrapEnsemble
from gradfiltering.ensembles.snapshot_ensemble import SnapshotEnsemble
from gradfiltering.ensembles.snapshots import SnapshotPair
from gradfiltering.planning import savings
from gradfiltering.planning.model_shapes import LayerShape, LinearShape, ModelShape
from gradfiltering.planning.operations import TokenCounts, frozen_operations, gradient_operations
from gradfiltering.planning.planner import plan_run
from gradfiltering.planning.run_plan import PlannedWork
from gradfiltering.planning.savings import CheaperWork, adapt_last_layers, find_savings
from gradfiltering.reports.plan_table import describe_plan, describe_saving
from gradfiltering.requests import GradientLog, TaskGradients
from gradfiltering.scorers.gsnr import GSNR
from gradfiltering.scorers.ifd import IFD
from gradfiltering.scorers.loss import LossScorer
from tests.support.plans import LORA, WANTED, plan_request
from tests.support.small_ensembles import small_ensemble

SNAPSHOTS = SnapshotPair(1, 4)


def work(seconds):
    return [PlannedWork("proxy", "work", TokenCounts(), 1, "training", seconds=part) for part in seconds]


@pytest.fixture
def every_run_is_long(monkeypatch):
    monkeypatch.setattr(savings, "LONG_SECONDS", 0.0)
    monkeypatch.setattr(savings, "LEAST_SHARE", 1e-9)


@pytest.mark.parametrize(
    ("run_seconds", "cheaper_seconds", "saved_seconds"),
    [
        (300.0, [100, 50], 60.0),
        (300.0, [100, 80], 30.0),  # a tenth of the run
        (300.0, [100, 81], None),
        (300.0, [100, 150], None),
        (120.0, [10, 10], None),
        (120.1, [10, 10], 190.0),
        (None, [10, 10], None),
        (300.0, [10, None], None),
    ],
)
def test_savings_of_a_tenth_of_two_minutes_are_named(run_seconds, cheaper_seconds, saved_seconds):
    cheaper = CheaperWork("online", {}, work(cheaper_seconds))
    found = find_savings(run_seconds, work([110, 100]), [cheaper])
    assert [saving.seconds for saving in found] == ([] if saved_seconds is None else [pytest.approx(saved_seconds)])


def test_lower_layers_lose_their_adapters_and_way_back():
    layer = LayerShape((LinearShape(4, 6, rank=2, reads_layer_input=True), LinearShape(6, 4, rank=2)), 0)
    shape = ModelShape((layer,) * 4, width=4, vocabulary=10, weight_bytes=0, element_bytes=4)
    upper, counts = adapt_last_layers(shape, 1), TokenCounts(padded=3)
    assert upper.first_adapted_layer == 3 and upper.layers[3] == layer
    assert frozen_operations(upper, counts) == 3 * 2 * 3 * (24 + 24)
    # The adapted layer: forward 2·3·(48 + 40); back, its first matrix 2·3·2·(4 + 12), its second 2·3·(2·(6 + 8) + 36).
    assert gradient_operations(upper, counts) - frozen_operations(upper, counts) == 528 + 192 + 384


@pytest.mark.usefixtures("steady_speed", "every_run_is_long")
@pytest.mark.parametrize(
    ("change", "changes"),
    [
        ("online", {"ensemble": small_ensemble(collect="online")}),
        ("upper_layers", {"ensemble": small_ensemble(lora=replace(LORA, layers="last_1"))}),
        ("few_updates", {"snapshots": SnapshotPair(30, 90, "update")}),
    ],
)
def test_a_saving_is_the_difference_to_the_plan_with_it(context, change, changes):
    context = replace(context, ensemble=small_ensemble(lora=LORA), snapshots=SNAPSHOTS)
    plan = plan_run(plan_request(context, GradientLog()), WANTED)
    cheaper_plan = plan_run(plan_request(replace(context, **changes), GradientLog()), WANTED)
    saved_seconds = {saving.change: saving.seconds for saving in plan.savings}
    assert set(saved_seconds) == {"online", "upper_layers", "few_updates"}
    assert saved_seconds[change] == pytest.approx(plan.seconds - cheaper_plan.seconds)
    assert plan.seconds > cheaper_plan.seconds > 0
    assert change not in {saving.change for saving in cheaper_plan.savings}, "it is made already"


@pytest.mark.usefixtures("steady_speed", "every_run_is_long")
def test_online_norms_save_the_passes_over_all_rows(context):
    plan = plan_run(plan_request(context, GradientLog()), WANTED)
    passes = [
        piece.seconds
        for stage in plan.stages
        for piece in stage.work
        if piece.description.startswith("gradients of all rows after epoch")
    ]
    saved_seconds = {saving.change: saving.seconds for saving in plan.savings}
    assert len(passes) == 2 and saved_seconds["online"] == pytest.approx(sum(passes))
    assert "few_updates" not in saved_seconds, "60 updates are few"


@pytest.mark.usefixtures("steady_speed", "every_run_is_long")
@pytest.mark.parametrize(
    ("changes", "requests", "expected"),
    [
        ({"ensemble": BootstrapEnsemble(**vars(small_ensemble()))}, [GradientLog()], {"upper_layers", "few_updates"}),
        ({"ensemble": small_ensemble(collect="online")}, [GradientLog()], {"upper_layers"}),
        ({"ensemble": SnapshotEnsemble(**vars(small_ensemble()))}, [GradientLog()], {"upper_layers"}),
        (
            {},
            [GradientLog(), TaskGradients(checkpoints=(1, 2), members=2, validation=None, task=None)],
            {"online", "upper_layers"},
        ),
    ],
    ids=["bootstrap", "online", "snapshots along an epoch", "influence"],
)
def test_changes_that_a_run_cannot_make_are_left_out(context, changes, requests, expected):
    context = replace(context, snapshots=SNAPSHOTS, **changes)
    plan = plan_run(plan_request(context, *requests), WANTED)
    assert {saving.change for saving in plan.savings} == expected


@pytest.mark.usefixtures("steady_speed")
def test_a_short_run_gets_no_advice(context):
    assert not plan_run(plan_request(context, GradientLog()), WANTED).savings


def test_few_updates_are_those_of_the_option():
    options = yaml.safe_load((Path(__file__).parents[2] / "conf/epochs/updates.yaml").read_text("utf-8"))
    assert (options["early"], options["late"]) == (savings.FEW_UPDATES.early, savings.FEW_UPDATES.late)


@pytest.mark.usefixtures("steady_speed", "every_run_is_long")
def test_losses_of_the_base_model_spare_all_work_with_adapters(context):
    request = replace(plan_request(context, *GSNR().requests), requests_under_ifd=IFD().requests)
    plan = plan_run(request, WANTED)
    ifd_plan = plan_run(plan_request(context, *IFD().requests), WANTED)
    saved_seconds = {saving.change: saving.seconds for saving in plan.savings}
    assert saved_seconds["ifd"] == pytest.approx(plan.seconds - ifd_plan.seconds)
    assert plan.savings[0].change == "ifd", "the greatest saving comes first"
    assert list(saved_seconds.values()) == sorted(saved_seconds.values(), reverse=True)
    assert not ifd_plan.savings


@pytest.mark.usefixtures("steady_speed", "every_run_is_long")
def test_losses_are_not_proposed_in_the_place_of_losses(context):
    request = replace(plan_request(context, *LossScorer().requests), requests_under_ifd=IFD().requests)
    assert not plan_run(request, WANTED).savings


def test_savings_are_told_with_option_time_and_effect(context, steady_speed, every_run_is_long):
    request = plan_request(replace(context, snapshots=SNAPSHOTS), GradientLog())
    plan = plan_run(replace(request, requests_under_ifd=IFD().requests), WANTED)
    content = json.loads(json.dumps(plan.to_json()))
    told = "\n".join(describe_plan(content)[-4:])
    assert "with scorer=ifd: losses of the base model in the place of gradients; on SmolLM2 the rows of neither" in told
    assert "with ensemble.collect=online: norms of the training steps instead of passes of their own, which" in told
    assert "with ensemble.lora.layers=last_1: adapters in the last quarter of the layers only" in told
    assert "with epochs=updates or ensemble.train_rows=88: 90 updates instead of 120" in told
    minutes = describe_saving({"change": "online", "values": {}, "seconds": 600.0}, 2100.0)
    assert minutes.startswith("25 min instead of 35 min with ensemble.collect=online:")
