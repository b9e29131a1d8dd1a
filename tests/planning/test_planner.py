"""Plans of runs: what measuring really computes, what the cache spares, and rows cut to the time given."""

import json
import math
import time
from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest

from gradfiltering.ensembles import trained_ensemble
from gradfiltering.ensembles.bootstrap_ensemble import BootstrapEnsemble
from gradfiltering.ensembles.dropout_ensemble import DropoutEnsemble
from gradfiltering.ensembles.heldout_member import HeldoutMember
from gradfiltering.ensembles.snapshots import SnapshotPair
from gradfiltering.errors import UserError
from gradfiltering.evidence.heldout_member import measure_heldout_member
from gradfiltering.evidence.loss_fall import LossFallSnapshots
from gradfiltering.evidence.measurers import measure_evidence
from gradfiltering.finetuning.settings import FineTuningSettings
from gradfiltering.gradients.vmap import VmapEngine
from gradfiltering.judging.generation import GenerationSettings
from gradfiltering.models.objectives import ResponseNLL
from gradfiltering.planning import adapter_plan, ensemble_work, memory_estimates, planner, stored_calibration
from gradfiltering.planning.model_shapes import read_shape
from gradfiltering.planning.plan_settings import PlanSettings
from gradfiltering.planning.planner import plan_run
from gradfiltering.planning.target_work import PlannedTarget
from gradfiltering.reports.plan_table import describe_plan
from gradfiltering.requests import (
    BaseModelLosses,
    Embeddings,
    ErrorNorms,
    GradientLog,
    Projections,
    ResponseLosses,
    TaskGradients,
)
from tests.support.operation_counter import OperationCounter
from tests.support.plans import LORA, RATES, WANTED, plan_request, steady_machine
from tests.support.small_ensembles import small_ensemble

NO_PLAN = PlanSettings()
UPDATES = SnapshotPair(2, 5, "update")
TUNING = FineTuningSettings(
    epochs=2, batch_size=8, micro_batch_tokens=500, gradient_checkpointing=False, lr=1e-3, schedule="cosine",
    warmup_share=0.03, weight_decay=0.0, clip_norm=1.0, records=3, checkpoint_minutes=10, lora=LORA,
)  # fmt: skip


@pytest.mark.parametrize(
    ("requests", "changes"),
    [
        ([GradientLog()], {}),
        ([GradientLog()], {"heldout_norms": True}),
        ([GradientLog()], {"build_engine": partial(VmapEngine, objective=ResponseNLL())}),
        ([GradientLog()], {"ensemble": small_ensemble(collect="online")}),
        ([GradientLog()], {"ensemble": small_ensemble(lora=replace(LORA, layers="last_1"))}),
        pytest.param(
            [GradientLog()],
            {"ensemble": small_ensemble(lora=replace(LORA, layers="last_1")), "batches": "nothing kept"},
            marks=pytest.mark.slow,
        ),
        ([GradientLog()], {"ensemble": BootstrapEnsemble(**vars(small_ensemble()))}),
        ([GradientLog()], {"ensemble": DropoutEnsemble(**vars(small_ensemble()), dropout=0.1, train_dropout=0.0)}),
        ([Projections()], {}),
        pytest.param([Projections(members=1)], {}, marks=pytest.mark.slow),
        pytest.param([Projections(members=2), GradientLog()], {}, marks=pytest.mark.slow),
        ([BaseModelLosses(), ErrorNorms(), Embeddings()], {}),
        pytest.param(
            [TaskGradients(checkpoints=(1, 2), members=2, validation=None, task=None)], {}, marks=pytest.mark.slow
        ),
        ([GradientLog(), TaskGradients((1, 2), members=2, validation=None, task=None)], {"snapshots": UPDATES}),
    ],
    ids=[
        "log",
        "norms of held-out rows",
        "vmap",
        "online",
        "upper layers",
        "nothing kept",
        "bootstrap",
        "dropout",
        "projections",
        "projections of a member",
        "projections of some members beside the log",
        "base",
        "influence",
        "influence beside updates",
    ],
)
def test_operations_are_those_of_the_work(context, requests, changes):
    if changes.get("batches") == "nothing kept":
        changes = {**changes, "batches": replace(context.batches, prefix_limit=0)}
    context = replace(context, **changes)
    if not any(isinstance(request, TaskGradients) for request in requests):  # 5.6 % too much for 60 rows
        few_rows = context.examples.select(context.examples.example_ids[::2])  # counting takes longer than computing
        context = replace(context, examples=few_rows)
    plan = plan_run(plan_request(context, *requests), NO_PLAN)
    assert plan.seconds is None and plan.calibration_seconds == 0, "such short work is not timed"
    with OperationCounter() as counter:
        measure_evidence(requests, context)
    assert plan.operations == pytest.approx(counter.operations, rel=0.05)


@pytest.mark.parametrize(
    ("requests", "members"),
    [
        ([ErrorNorms()], 0),
        ([Projections(members=1)], 1),
        ([TaskGradients(checkpoints=(1,), members=2, validation=None, task=None)], 2),
        ([Projections(members=1), GradientLog()], 3),
    ],
)
def test_the_members_of_a_plan_are_those_that_are_trained(context, requests, members):
    assert plan_run(plan_request(context, *requests), NO_PLAN).members == members


def test_heldout_losses_take_half_of_the_work_with_norms(context):
    plans = [
        plan_run(plan_request(replace(context, heldout_norms=with_norms), GradientLog()), NO_PLAN)
        for with_norms in (False, True)
    ]
    (losses, norms) = (
        {piece.description: piece for piece in plan.stages[1].work if "held-out rows" in piece.description}
        for plan in plans
    )
    assert list(losses) == [f"losses of held-out rows after epoch {epoch}, 3 members" for epoch in (1, 2)]
    late_norms = norms["gradients of held-out rows after epoch 2, 3 members"]
    late_losses = losses["losses of held-out rows after epoch 2, 3 members"]
    assert 0.4 < late_losses.operations / late_norms.operations < 0.5
    assert (late_losses.kind, late_norms.kind) == ("losses", "gradients") and not late_losses.is_per_row


def test_what_the_cache_has_costs_nothing_and_is_named(context):
    first_plan = plan_run(plan_request(context, GradientLog()), NO_PLAN)
    measure_evidence([GradientLog()], context)
    plan = plan_run(plan_request(context, GradientLog()), NO_PLAN)
    assert plan.operations == 0 == plan.seconds and first_plan.operations > 0
    work = [item for stage in plan.stages for item in stage.work]
    assert work and all(item.reused for item in work)
    assert sum(item.all_operations for item in work) == pytest.approx(first_plan.operations, rel=0.01)


@pytest.mark.parametrize(
    "measured_request",
    [ResponseLosses("plain", 64), TaskGradients((1, 2), members=2, validation=None, task=None)],
    ids=["losses of responses", "task gradients"],
)
def test_losses_of_responses_and_task_gradients_in_the_cache_cost_nothing(context, measured_request):
    few_rows = context.examples.select(context.examples.example_ids[::4])
    context = replace(context, examples=few_rows)
    first_plan = plan_run(plan_request(context, measured_request), NO_PLAN)
    measure_evidence([measured_request], context)
    plan = plan_run(plan_request(context, measured_request), NO_PLAN)
    assert plan.operations == 0 < first_plan.operations
    assert sum(piece.all_operations for stage in plan.stages for piece in stage.work) == first_plan.operations
    other_rows = replace(context, examples=few_rows.select(few_rows.example_ids[:-1]))
    assert plan_run(plan_request(other_rows, measured_request), NO_PLAN).operations > 0


def test_task_gradients_of_one_member_more_are_all_that_is_planned(context):
    context = replace(context, examples=context.examples.select(context.examples.example_ids[::4]))
    one, two = (TaskGradients((1,), members=members, validation=None, task=None) for members in (1, 2))
    measure_evidence([one], context)
    due_work = [
        piece.description
        for stage in plan_run(plan_request(context, two), NO_PLAN).stages
        for piece in stage.work
        if not piece.reused
    ]
    assert due_work == [
        "training of 1 member, epoch 1",
        "gradients of all rows, 1 of 2 passes at checkpoints",
        "gradients of validation rows, 1 of 2 passes at checkpoints",
    ]


def test_the_extra_member_of_the_heldout_loss_is_planned(context):
    context = replace(context, heldout=None)
    request = replace(plan_request(context, GradientLog()), heldout_member=HeldoutMember())
    plan = plan_run(request, NO_PLAN)
    measure_evidence([GradientLog()], context)
    with OperationCounter() as counter:
        measure_heldout_member(context, HeldoutMember().split(context.examples, False, context.seed))
    planned = {stage.name: stage.operations for stage in plan.stages}
    assert planned["heldout_member"] == pytest.approx(counter.operations, rel=0.05)


def test_one_member_more_is_all_that_is_planned(context):
    measure_evidence([GradientLog()], context)
    larger = replace(context, ensemble=small_ensemble(m=4))
    plan = plan_run(plan_request(larger, GradientLog()), NO_PLAN)
    descriptions = {item.description: item.reused for stage in plan.stages for item in stage.work}
    assert descriptions["training of 3 members, epochs 1 to 2"] is True
    assert descriptions["training of 1 member, epochs 1 to 2"] is False
    with OperationCounter() as counter:
        measure_evidence([GradientLog()], larger)
    assert plan.operations == pytest.approx(counter.operations, rel=0.05)


def test_a_wanted_plan_is_timed_and_names_memory_and_disk(context):
    plan = plan_run(plan_request(context, GradientLog()), WANTED)
    assert plan.seconds > 0 and plan.calibration_seconds > 0 and plan.measured_at is None
    assert [stage.name for stage in plan.stages] == ["base_model_passes", "proxy"]
    shape = read_shape(context.base_model.model)
    adapter_weights = shape.with_adapters(2).adapter_weights
    assert plan.stages[1].disk_bytes >= 3 * 2 * 16 * adapter_weights, "three members after two epochs"
    assert plan.stages[1].peak_bytes >= plan.stages[0].peak_bytes > 0
    assert json.loads(json.dumps(plan.to_json()))["parameters"] == shape.matmul_weights
    assert not list(context.cache.folder.glob("members/*")), "something was trained"


def tuned(context, **changes):
    usual = {
        "shape": read_shape(context.base_model.model), "settings": TUNING, "baselines": ["full", "random"],
        "selected_rows": 12, "is_proxy": True, "generation": GenerationSettings(6, 4),
        "prompt_lengths": [9, 12, 30, 11, 8, 10],
    }  # fmt: skip
    return PlannedTarget(**{**usual, **changes})


def test_target_and_answers_are_planned(context, steady_speed):
    plan = plan_run(plan_request(context, target=tuned(context)), WANTED)
    target, judge = plan.stages
    rows = {item.description.partition(":")[0]: item.counts.rows for item in target.work if item.kind == "tuning"}
    assert rows == {"candidate": 24, "full": 2 * len(context.examples), "random": 24}
    assert judge.work[0].counts.rows == 18 and judge.work[0].counts.steps == 3 * 2 * 6
    recomputed = replace(TUNING, gradient_checkpointing=True)
    dearer = plan_run(plan_request(context, target=tuned(context, settings=recomputed)), WANTED)
    assert 1.2 < dearer.stages[0].operations / target.operations < 1.5
    other = plan_run(plan_request(context, target=tuned(context, is_proxy=False)), WANTED)
    assert {item.estimated_from for item in other.stages[0].work} == {"the proxy's speed, by shapes"}


def test_snapshots_by_the_fall_of_the_loss_are_counted_in_updates(context):
    changed = replace(context, snapshots=LossFallSnapshots().first_pair)
    plan = plan_run(plan_request(changed, GradientLog()), NO_PLAN)
    late_update = 2 * changed.ensemble.steps_per_epoch(len(changed.examples))
    descriptions = {piece.description for stage in plan.stages for piece in stage.work}
    assert f"gradients of all rows after update {late_update}, 3 members" in descriptions


def test_a_target_with_adapters_in_its_last_layer_alone_takes_less(context, steady_speed):
    upper_layers = replace(TUNING, lora=replace(LORA, layers="last_1"))
    work, upper_work = (
        plan_run(plan_request(context, target=tuned(context, settings=settings)), WANTED).stages[0].work
        for settings in (TUNING, upper_layers)
    )
    exchanged_weights = attach_upper_layers(context).get_nb_trainable_parameters()[0]
    for piece, upper_piece in zip(work, upper_work, strict=True):
        assert upper_piece.operations < piece.operations, piece.description
        if piece.kind == "tuning":
            assert upper_piece.exchanged_bytes == 4 * exchanged_weights


def test_layers_that_the_target_lacks_are_refused(context):
    settings = replace(TUNING, lora=replace(LORA, layers="last_9"))
    with pytest.raises(UserError, match="layers is last_9: it asks for the last 9 layers, and the model has 2"):
        plan_run(plan_request(context, target=tuned(context, settings=settings)), NO_PLAN)


def test_a_larger_target_may_name_layers_that_the_proxy_lacks(context):
    shape = read_shape(context.base_model.model)
    settings = replace(TUNING, lora=replace(LORA, layers="last_3"))
    target = tuned(context, shape=replace(shape, layers=shape.layers * 2), settings=settings, is_proxy=False)
    assert plan_run(plan_request(context, target=target), WANTED).seconds > 0


def test_each_kind_of_work_is_estimated_at_its_own_speed(context, steady_speed):
    plan = plan_run(plan_request(context, GradientLog(), target=tuned(context)), WANTED)
    pieces = [piece for stage in plan.stages for piece in stage.work if piece.kind != "fixed"]
    assert {piece.kind for piece in pieces} == {"losses", "training", "gradients", "tuning", "answers"}
    for piece in pieces:
        rate = RATES["gradients" if piece.kind == "training" else piece.kind]
        assert piece.seconds == pytest.approx(piece.operations / rate), piece.description


def test_processes_share_batches_but_neither_answers_nor_updates(context, steady_speed, monkeypatch):
    monkeypatch.setattr(adapter_plan, "time_update", lambda *_: 0.25)
    request = plan_request(context, GradientLog(), target=tuned(context))

    def plan_work():
        return [piece for stage in plan_run(request, WANTED).stages for piece in stage.work if piece.kind != "fixed"]

    work_of_one = plan_work()
    monkeypatch.setattr(planner, "world_size", lambda: 3)
    for alone, shared in zip(work_of_one, plan_work(), strict=True):
        divided_count = shared.step_rows or shared.counts.steps
        shares = 1 if shared.kind == "answers" else divided_count / math.ceil(divided_count / 3)
        update_seconds = 0.25 * shared.counts.steps if shared.kind in ("training", "tuning") else 0
        expected_seconds = (alone.seconds - update_seconds) / shares + update_seconds
        assert shared.seconds == pytest.approx(expected_seconds), shared.description


def test_a_second_plan_takes_the_speed_that_was_measured(context, steady_speed, monkeypatch):
    request = plan_request(context, GradientLog(), target=tuned(context))
    first = plan_run(request, WANTED)
    steady_machine(monkeypatch, {kind: 2 * rate for kind, rate in RATES.items()})
    stored = plan_run(request, WANTED)
    assert first.measured_at is None and 0 <= time.time() - stored.measured_at < 60
    assert stored.seconds == pytest.approx(first.seconds)
    assert first.calibration_seconds > 0 == stored.calibration_seconds
    assert any("an earlier run timed" in line for line in describe_plan(stored.to_json()))
    fresh = plan_run(request, PlanSettings(only=True, fresh=True))
    assert fresh.measured_at is None and fresh.seconds == pytest.approx(first.seconds / 2)
    assert plan_run(request, WANTED).seconds == pytest.approx(first.seconds / 2), "the fresh one took its place"


def test_an_ensemble_that_is_measured_by_the_epoch_keeps_its_epochs(context):
    online = replace(context, snapshots=SnapshotPair(1, 2, longest_epoch=5), ensemble=small_ensemble(collect="online"))
    assert online.settle_snapshots().snapshots == SnapshotPair(1, 2)


@pytest.mark.parametrize("change", ["threads", "members", "rows"])
def test_other_work_is_timed_anew(context, steady_speed, monkeypatch, change):
    plan_run(plan_request(context, GradientLog()), WANTED)
    if change == "threads":
        monkeypatch.setattr(stored_calibration, "describe_machine", lambda device: {"host": "steady", "threads": 7})
    elif change == "members":
        context = replace(context, ensemble=small_ensemble(m=4))
    else:
        monkeypatch.setattr(adapter_plan, "describe_lengths", lambda examples: [512, 1024])
    timed = []
    monkeypatch.setattr(adapter_plan, "time_gradients", lambda *_: timed.append(1) or 1e9)
    plan_run(plan_request(context, GradientLog()), WANTED)
    assert timed


def test_storing_members_takes_the_seconds_measured_for_it(context, steady_speed, monkeypatch):
    monkeypatch.setattr(adapter_plan, "time_storing", lambda *_: 3.0)
    plan = plan_run(plan_request(context, GradientLog()), WANTED)
    fixed = [piece for stage in plan.stages for piece in stage.work if piece.kind == "fixed"]
    assert [piece.description for piece in fixed] == ["checking the engine, storing members"]
    assert fixed[0].seconds == 3 * 2 * 3.0, "three members at two snapshots"


def test_disk_holds_every_stored_member_and_the_frozen_layers(context):
    snapshots = SnapshotPair(2, 5, "update")
    upper_layers = small_ensemble(lora=replace(LORA, layers="last_1"), train_rows=50)
    changed = replace(context, snapshots=snapshots, ensemble=upper_layers)
    (ensemble_stage,) = (
        stage for stage in plan_run(plan_request(changed, GradientLog()), NO_PLAN).stages if stage.name == "proxy"
    )
    stored = {piece.description: piece.stored_bytes for piece in ensemble_stage.work if piece.stored_bytes}
    adapter_weights = sum(
        parameter.numel() for name, parameter in attach_upper_layers(context).named_parameters() if "lora_" in name
    )
    assert stored.pop("training of 3 members, updates 1 to 5") == 3 * 2 * 16 * adapter_weights, "after both snapshots"
    measure_evidence([GradientLog()], changed)
    shards = sum(path.stat().st_size for path in changed.cache.folder.glob("frozen_prefix/*/states-*.bin"))
    assert sum(stored.values()) == shards > 0
    assert ensemble_stage.disk_bytes > 3 * 2 * 16 * adapter_weights + shards


def test_frozen_layers_on_a_gpu_take_its_memory_and_no_disk(context, monkeypatch):
    monkeypatch.setattr(memory_estimates, "present_bytes", lambda *_: 1000)
    changed = replace(context, ensemble=small_ensemble(lora=replace(LORA, layers="last_1")))

    def plan_stage():
        plan = plan_run(plan_request(changed, GradientLog()), NO_PLAN)
        return next(stage for stage in plan.stages if stage.name == "proxy")

    stored = plan_stage()
    monkeypatch.setattr(ensemble_work, "keeps_on_device", lambda *_: True)
    there = plan_stage()
    kept = [piece.device_bytes for piece in there.work if piece.device_bytes]
    assert kept == [piece.stored_bytes for piece in stored.work if piece.description.startswith("frozen layers")]
    assert len(kept) == 2 and stored.disk_bytes - there.disk_bytes == sum(kept)
    assert there.peak_bytes - stored.peak_bytes == sum(kept)


def test_frozen_layers_that_nothing_is_computed_from_are_not_due(context, monkeypatch):
    monkeypatch.setattr(ensemble_work, "keeps_on_device", lambda *_: True)
    monkeypatch.setattr(trained_ensemble, "keeps_on_device", lambda *_: True)
    monkeypatch.setattr(memory_estimates, "present_bytes", lambda *_: 1000)
    changed = replace(context, ensemble=small_ensemble(lora=replace(LORA, layers="last_1")))
    measure_evidence([GradientLog()], changed)
    plan = plan_run(plan_request(changed, GradientLog()), NO_PLAN)
    assert all(piece.reused for stage in plan.stages for piece in stage.work)
    assert {stage.peak_bytes for stage in plan.stages} == {1000}, "no memory is taken for states that nothing reads"


@pytest.mark.parametrize("is_on_device", [True, False])
def test_frozen_layers_are_due_for_the_extra_member_of_a_cached_ensemble(context, monkeypatch, is_on_device):
    monkeypatch.setattr(memory_estimates, "present_bytes", lambda *_: 1000)
    upper_layers = small_ensemble(lora=replace(LORA, layers="last_1"))
    changed = replace(context, heldout=None, ensemble=upper_layers)
    measure_evidence([GradientLog()], replace(changed, batches=replace(context.batches, prefix_limit=0)))
    request = replace(plan_request(changed, GradientLog()), heldout_member=HeldoutMember())
    monkeypatch.setattr(ensemble_work, "keeps_on_device", lambda *_: is_on_device)
    plan = plan_run(request, NO_PLAN)
    frozen = [piece for stage in plan.stages for piece in stage.work if piece.description.startswith("frozen layers")]
    assert [(piece.stage, piece.reused) for piece in frozen] == [("heldout_member", False)]
    with OperationCounter() as counter:
        measure_heldout_member(changed, HeldoutMember().split(changed.examples, False, changed.seed))
    planned = {stage.name: stage.operations for stage in plan.stages}
    assert planned["heldout_member"] == pytest.approx(counter.operations, rel=0.05)


def test_a_gpu_keeps_frozen_layers_for_the_later_stages(context, monkeypatch):
    monkeypatch.setattr(memory_estimates, "present_bytes", lambda *_: 1000)
    changed = replace(context, heldout=None, ensemble=small_ensemble(lora=replace(LORA, layers="last_1")))
    request = replace(plan_request(changed, GradientLog()), heldout_member=HeldoutMember())
    stored_plan = plan_run(request, NO_PLAN)
    monkeypatch.setattr(ensemble_work, "keeps_on_device", lambda *_: True)
    plan = plan_run(request, NO_PLAN)
    (kept_bytes,) = (piece.device_bytes for stage in plan.stages for piece in stage.work if piece.device_bytes)
    more_bytes = {
        stage.name: stage.peak_bytes - stored_stage.peak_bytes
        for stage, stored_stage in zip(plan.stages, stored_plan.stages, strict=True)
    }
    assert more_bytes == {"base_model_passes": 0, "proxy": kept_bytes, "heldout_member": kept_bytes}


def test_task_gradients_alone_need_the_frozen_layers_of_all_and_validation_rows(context):
    changed = replace(context, ensemble=small_ensemble(lora=replace(LORA, layers="last_1")))
    plan = plan_run(plan_request(changed, TaskGradients((1, 2), 1, None, "auto")), NO_PLAN)
    frozen = [
        piece.description for stage in plan.stages for piece in stage.work if "frozen layers" in piece.description
    ]
    assert [description.split(" of ")[1] for description in frozen] == ["all rows, once", "validation rows, once"]


def attach_upper_layers(context):
    return replace(LORA, layers="last_1").attach(deepcopy(context.base_model.model))
