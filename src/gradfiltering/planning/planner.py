"""Planning of a run: which work each stage has, timed by a calibration of a few seconds where it is worth it."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from gradfiltering.data.examples import Examples
from gradfiltering.data.validation_rows import validation_rows
from gradfiltering.distributed.process_group import gather_from_ranks, world_size
from gradfiltering.ensembles.heldout_member import HeldoutMember
from gradfiltering.ensembles.lora_ensemble import AUTO
from gradfiltering.ensembles.snapshots import Timeline
from gradfiltering.ensembles.trained_ensemble import EnsembleCosts, TrainedEnsemble
from gradfiltering.errors import UserError
from gradfiltering.evidence.base_model_losses import REFERENCE_STAGE
from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.evidence.ensemble_passes import attach_ensemble
from gradfiltering.evidence.heldout_member import HELDOUT_MEMBER_STAGE
from gradfiltering.evidence.measurers import BASE_MODEL_STAGE, ENSEMBLE_STAGE, TASK_GRADIENT_STAGE, sort_requests
from gradfiltering.evidence.task_gradients import take_members
from gradfiltering.gradients.memory import ChunkMemory, measure_chunk_memory
from gradfiltering.planning import memory_estimates
from gradfiltering.planning.calibration import (
    MeasuredWork,
    Speed,
    measure_losses,
    measure_tuning,
    time_answers,
    time_engine,
    time_gradients,
    time_storing,
    time_update,
)
from gradfiltering.planning.evidence_work import (
    list_uncounted,
    plan_base_model_passes,
    plan_ensemble,
    plan_frozen_layers,
    plan_heldout_member,
    plan_reference,
    plan_task_gradients,
)
from gradfiltering.planning.fleet import estimate_fleet_cost
from gradfiltering.planning.model_shapes import ModelShape, read_shape
from gradfiltering.planning.operations import TokenCounts
from gradfiltering.planning.plan_settings import PlanSettings
from gradfiltering.planning.run_plan import FIXED, PlannedStage, PlannedWork, RunPlan, Saving, sum_known
from gradfiltering.planning.savings import CheaperWork, find_savings, plan_cheaper_work
from gradfiltering.planning.stored_calibration import StoredCalibration, describe_lengths
from gradfiltering.planning.target_work import (
    JUDGE_STAGE,
    TARGET_STAGE,
    PlannedModel,
    PlannedTarget,
    list_models,
    plan_answers,
    plan_tuning,
)
from gradfiltering.requests import GradientLog, Projections, Request, TaskGradients
from gradfiltering.runs.files import hash_key
from gradfiltering.runs.progress import describe_stage
from gradfiltering.seeding import numpy_rng

PLANNED_STAGES = (
    REFERENCE_STAGE, BASE_MODEL_STAGE, ENSEMBLE_STAGE, TASK_GRADIENT_STAGE, HELDOUT_MEMBER_STAGE, TARGET_STAGE,
    JUDGE_STAGE,
)  # fmt: skip
NOMINAL_TOKENS = 2048  # padded tokens at once, before it is known what fits
SLOW_RATE = 5e9  # operations per second of a slow processor; work that is short at this rate is not timed
SHORT_SECONDS = 5.0
MIN_ROWS = 32  # the fewest rows that a run is cut to
MAX_DRAWS = 4
MOST_HELDOUT_ROWS = 100  # that are measured where the time is short
# Stage -> what makes it shorter whatever the rows.
LESS_WORK = {
    ENSEMBLE_STAGE: "fewer members, fewer epochs",
    HELDOUT_MEMBER_STAGE: "fewer epochs, no extra member",
    TASK_GRADIENT_STAGE: "fewer members, fewer checkpoints",
    TARGET_STAGE: "fewer baselines, fewer epochs of the target, an earlier last stage",
    JUDGE_STAGE: "fewer prompts, shorter answers, an earlier last stage",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlanRequest:
    """Everything that a plan is made of.

    Attributes:
        requests: measurements that the run makes.
        context: model, rows and settings that they are made with.
        first_members: members where their number is searched for.
        total_rows: all rows of the pool, for budgets.
        target: the target; None where the run ends before, or where nothing is known of it.
        notes: stage -> what is not counted.
        heldout_member: the extra member of the held-out loss; None for none.
        requests_under_ifd: measurements that the run would make were its rows scored by IFD, without adapters; None
            where that is no change to propose.
    """

    requests: frozenset[Request[Any]]
    context: MeasurementContext
    first_members: int
    total_rows: int
    target: PlannedTarget | None
    notes: Mapping[str, Sequence[str]]
    heldout_member: HeldoutMember | None = None
    requests_under_ifd: frozenset[Request[Any]] | None = None


def plan_run(request: PlanRequest, settings: PlanSettings) -> RunPlan:
    """Plan a run; where it takes more than a few seconds, or the user asks for the plan, its speed is measured.

    Args:
        request: the run.
        settings: of the plan.
    """
    started_at = time.monotonic()
    context = request.context
    if context.ensemble.m == AUTO:
        context = replace(context, ensemble=replace(context.ensemble, m=request.first_members))
    context = context.settle_snapshots()
    base_shape = read_shape(context.base_model.model)
    present_bytes = memory_estimates.present_bytes(context.device, base_shape)
    stage_requests = sort_requests(request.requests)
    planned_work = plan_reference(context, base_shape)
    base_passes = plan_base_model_passes(stage_requests.get(BASE_MODEL_STAGE, []), context, base_shape)
    planned_work += base_passes
    models: Mapping[str, PlannedModel] = {}
    if request.target is not None:
        target, examples, heldout, seed = request.target, context.examples, context.heldout, context.seed
        models = list_models(target, examples, heldout, request.total_rows, seed)
        planned_work += plan_tuning(target, models, examples, heldout, seed)
        planned_work += plan_answers(target, models)
    calibration = StoredCalibration(context.cache, context.device, settings.fresh)
    is_wanted = settings.only or settings.minutes is not None or settings.fleet.gpus is not None
    reads_ensemble = ENSEMBLE_STAGE in stage_requests or TASK_GRADIENT_STAGE in stage_requests
    adapter_plan = AdapterPlan([], base_shape)
    if reads_ensemble:
        adapter_plan = _plan_adapters(request, context, stage_requests, is_wanted, calibration)
        planned_work += adapter_plan.planned_work
    speed = None
    memories: Mapping[str, ChunkMemory] = {}
    if _is_long(planned_work, is_wanted):
        other_rates, memories = _measure_other_work(request, context, base_shape, planned_work, calibration)
        rates = other_rates | adapter_plan.rates
        rates.setdefault("gradients", rates["losses"])
        speed = Speed(
            rates=rates,
            update_seconds=adapter_plan.update_seconds,
            seconds=time.monotonic() - started_at,
            measured_at=calibration.measured_at,
            engine_seconds=adapter_plan.engine_seconds,
            storing_seconds=adapter_plan.storing_seconds,
        )
        speed = _slowest(speed)
        planned_work += _plan_fixed_work(planned_work, speed)
        logger.info("operations per second by kind of work: %s", {kind: f"{rate:.2e}" for kind, rate in rates.items()})
    timed_work = [_estimate(piece, speed) for piece in planned_work]
    batch_memory = BatchMemory(present_bytes, adapter_plan, models, memories)
    stages = _build_stages(timed_work, request, context, batch_memory)
    fleet_cost = None
    if settings.fleet.gpus is not None:
        fleet_cost = estimate_fleet_cost(stages, settings.fleet, lambda piece: _time_on_one_device(piece, speed))
    return RunPlan(
        stages=stages,
        rows=len(context.examples),
        pool_rows=len(context.examples),
        members=len(context.ensemble.member_ids) if reads_ensemble else 0,
        parameters=base_shape.matmul_weights,
        calibration_seconds=0.0 if speed is None else speed.seconds,
        measured_at=None if speed is None else speed.measured_at,
        device=str(context.device),
        savings=_find_savings(
            run_seconds=sum_known([stage.seconds for stage in stages]),
            measuring_work=[*base_passes, *adapter_plan.planned_work],
            cheaper_work=_list_cheaper_work(request, context, base_shape, base_passes, adapter_plan),
            speed=speed,
        ),
        fleet=None if fleet_cost is None else fleet_cost.to_json(),
    )


@dataclass(frozen=True)
class AdapterPlan:
    """The work that needs adapters, and what timing a part of it has shown.

    Attributes:
        planned_work: of the stages that need adapters.
        shape: of the model with adapters.
        memory: of chunks; None where the work is too short to be timed.
        chunk_tokens: padded tokens computed at once; 0 where the work is too short to be timed.
        rates: `gradients` -> operations per second; empty where the work is too short to be timed.
        update_seconds: of the optimiser's step.
        engine_seconds: of the engine before its first batch.
        storing_seconds: of one trained member, at one snapshot.
        cheaper_work: the same stages with changes that spare time; empty where the work is too short to be timed.
    """

    planned_work: list[PlannedWork]
    shape: ModelShape
    memory: ChunkMemory | None = None
    chunk_tokens: int = 0
    rates: dict[str, float] = field(default_factory=dict)
    update_seconds: float = 0.0
    engine_seconds: float = 0.0
    storing_seconds: float = 0.0
    cheaper_work: Sequence[CheaperWork] = ()


def _plan_adapters(
    request: PlanRequest,
    context: MeasurementContext,
    stage_requests: Mapping[str, Sequence[Request[Any]]],
    is_wanted: bool,
    calibration: StoredCalibration,
) -> AdapterPlan:
    """Plan the stages that need adapters; where they are long, settle what is computed at once, and time it."""
    with attach_ensemble(context, EnsembleCosts(), context.heldout) as trained_ensemble:
        shape = read_shape(trained_ensemble.model)
        engine_seconds = time_engine(trained_ensemble)  # the engine finds out which layers members share
        planned_work = _plan_ensembles(stage_requests, request, context, trained_ensemble, shape, NOMINAL_TOKENS)
        if not _is_long(planned_work, is_wanted):
            return AdapterPlan(planned_work, shape)
        settings = {
            "shape": _hash_shape(shape),
            "members": len(trained_ensemble.settings.trained_member_ids),
            "engine": trained_ensemble.engine.name,
            "shares_layers": trained_ensemble.engine.prefix is not None,
            "lengths": describe_lengths(context.examples),
            "chunk": [context.batches.tokens, context.batches.memory_limit],
            "objective": repr(context.objective),
        }
        measured = calibration.measure("gradients", settings, lambda: _time_stack(trained_ensemble, shape))
        chunk_tokens = max(int(measured["chunk_tokens"]), trained_ensemble.row_width)
        trained_ensemble.engine.chunk_tokens = chunk_tokens
        planned_work = _plan_ensembles(stage_requests, request, context, trained_ensemble, shape, chunk_tokens)
        cheaper_work = plan_cheaper_work(
            trained_ensemble,
            context.snapshots,
            shape,
            lambda other_ensemble, other_shape, snapshots: _plan_ensembles(
                stage_requests,
                request,
                replace(context, snapshots=snapshots),
                other_ensemble,
                other_shape,
                chunk_tokens,
            ),
            needs_epochs=TASK_GRADIENT_STAGE in stage_requests,
        )
        return AdapterPlan(
            planned_work=planned_work,
            shape=shape,
            memory=ChunkMemory(**measured["memory"]),
            chunk_tokens=chunk_tokens,
            rates={"gradients": measured["rate"]},
            update_seconds=measured["update_seconds"],
            engine_seconds=engine_seconds,
            storing_seconds=measured["storing_seconds"],
            cheaper_work=cheaper_work,
        )


def _time_stack(trained_ensemble: TrainedEnsemble, shape: ModelShape) -> dict[str, Any]:
    """Settle what a stack computes at once, and time its gradients, its updates and the storing of a member."""
    member_ids = list(trained_ensemble.settings.trained_member_ids)
    batch_tokens = trained_ensemble.prepare_engine(member_ids)
    chunk_tokens = trained_ensemble.engine.chunk_tokens
    logger.info("a pass has up to %d padded tokens a batch", batch_tokens)
    adapters = trained_ensemble.load_state(member_ids, 0).adapters
    device_adapters = {name: stacked.to(trained_ensemble.device) for name, stacked in adapters.items()}
    memory = measure_chunk_memory(trained_ensemble.engine, device_adapters, trained_ensemble.row_width)
    return {
        "rate": time_gradients(trained_ensemble, shape, chunk_tokens),
        "chunk_tokens": chunk_tokens,
        "memory": asdict(memory),
        "update_seconds": time_update(device_adapters),
        "storing_seconds": time_storing(adapters),
    }


def _hash_shape(shape: ModelShape) -> str:
    return hash_key(asdict(shape))


def _plan_ensembles(
    stage_requests: Mapping[str, Sequence[Request[Any]]],
    request: PlanRequest,
    context: MeasurementContext,
    trained_ensemble: TrainedEnsemble,
    shape: ModelShape,
    chunk_tokens: int,
) -> list[PlannedWork]:
    """Plan the stages that need adapters."""
    planned_work, trained_epochs = [], 0
    if ENSEMBLE_STAGE in stage_requests:
        row_sets = [("all rows", context.examples)]
        row_sets += [] if context.heldout is None else [("held-out rows", context.heldout)]
        projections = next((item for item in stage_requests[ENSEMBLE_STAGE] if isinstance(item, Projections)), None)
        epochs = [context.snapshots.early, context.snapshots.late]
        planned_work += plan_frozen_layers(trained_ensemble, row_sets, ENSEMBLE_STAGE, shape)
        planned_work += plan_ensemble(trained_ensemble, epochs, context, shape, chunk_tokens, projections)
        trained_epochs = context.snapshots.late if context.snapshots.unit == "epoch" else 0
    for item in stage_requests.get(TASK_GRADIENT_STAGE, []):
        if isinstance(item, TaskGradients):
            # Its checkpoints are epochs, whatever the snapshots of the gradient log are counted in.
            epoch_timeline = Timeline(trained_ensemble.member_cache.timeline.steps_per_epoch)
            members = replace(
                trained_ensemble,
                settings=take_members(item, context.ensemble),
                member_cache=trained_ensemble.member_cache.along(epoch_timeline),
            )
            validation, _ = validation_rows(context.dataset, item.validation, item.task).encode(context.encoder)
            epochs_before = trained_epochs if item.members <= len(context.ensemble.trained_member_ids) else 0
            planned_work += plan_task_gradients(item, members, validation, shape, chunk_tokens, epochs_before)
    if request.heldout_member is not None and GradientLog() in stage_requests.get(ENSEMBLE_STAGE, []):
        split = request.heldout_member.split(context.examples, context.heldout is not None, context.seed)
        if split is not None:
            snapshots = [context.snapshots.early, context.snapshots.late]
            planned_work += plan_heldout_member(trained_ensemble, split, snapshots, shape, chunk_tokens, context)
    return planned_work


def _measure_other_work(
    request: PlanRequest,
    context: MeasurementContext,
    shape: ModelShape,
    planned_work: Sequence[PlannedWork],
    calibration: StoredCalibration,
) -> tuple[dict[str, float], dict[str, ChunkMemory]]:
    """Measure the work without members that is due, on the proxy, which is loaded.

    Returns:
        Kind of work -> operations per second; kind of work -> memory of its batches.
    """
    settings = {
        "shape": _hash_shape(shape),
        "lengths": describe_lengths(context.examples),
        "batch_tokens": context.batches.forward_tokens,
        "objective": repr(context.objective),
    }
    measured_works: dict[str, MeasuredWork] = {}

    def measure(work_kind: str, more_settings: Mapping[str, Any], measure_work: Callable[[], MeasuredWork]) -> None:
        content = calibration.measure(work_kind, {**settings, **more_settings}, lambda: measure_work().to_json())
        measured_works[work_kind] = MeasuredWork.from_json(content)

    measure("losses", {}, lambda: measure_losses(context, shape))
    target, kinds = request.target, {piece.kind for piece in planned_work if piece.operations}
    if target is not None and "tuning" in kinds:
        tuning = target.settings
        tuning_settings = {
            "adapted": _hash_shape(target.adapted_shape if target.is_proxy else shape.with_adapters(tuning.lora.rank)),
            "tuning": [tuning.micro_batch_tokens, repr(tuning.lora.target_modules), repr(tuning.lora.layers)],
            "recomputes_layers": tuning.gradient_checkpointing,
        }
        measure(
            "tuning",
            tuning_settings,
            lambda: measure_tuning(context.base_model, context.examples, tuning, context.objective),
        )
    rates = {work_kind: measured_work.rate for work_kind, measured_work in measured_works.items()}
    if target is not None and target.generation is not None and "answers" in kinds:
        first_batch = sorted(target.prompt_lengths, reverse=True)[: target.generation.batch_size]
        measured_answers = calibration.measure(
            "answers",
            {**settings, "prompts": len(first_batch), "width": int(np.median(first_batch))},
            lambda: {"rate": time_answers(context.base_model, first_batch, context.examples)},
        )
        rates["answers"] = float(measured_answers["rate"])
    return rates, {work_kind: measured_work.memory for work_kind, measured_work in measured_works.items()}


def _plan_fixed_work(planned_work: Sequence[PlannedWork], speed: Speed) -> list[PlannedWork]:
    """Plan what a stage with members takes whatever its size: checking its engine, storing what was trained."""
    fixed_work = []
    for stage_name in (ENSEMBLE_STAGE, TASK_GRADIENT_STAGE, HELDOUT_MEMBER_STAGE):
        due_work = [piece for piece in planned_work if piece.stage == stage_name and piece.operations]
        if due_work:
            stored_members = sum(piece.stored_members for piece in due_work)
            description = "checking the engine" + (", storing members" if stored_members else "")
            seconds = speed.engine_seconds + stored_members * speed.storing_seconds
            fixed_work.append(
                PlannedWork(stage_name, description, TokenCounts(), 0, FIXED, is_per_row=False, seconds=seconds)
            )
    return fixed_work


def _is_long(planned_work: Iterable[PlannedWork], is_wanted: bool) -> bool:
    """Return True for work that is worth timing: the user wants to know, or a slow processor needs seconds for it."""
    operations = sum(piece.operations for piece in planned_work)
    return operations > 0 and (is_wanted or operations / SLOW_RATE > SHORT_SECONDS)


def _slowest(speed: Speed) -> Speed:
    """Agree on the slowest speed of all processes."""
    speeds = gather_from_ranks(speed)
    rates = {kind: min(rank_speed.rates[kind] for rank_speed in speeds) for kind in speed.rates}
    slowest = {
        name: max(getattr(rank_speed, name) for rank_speed in speeds)
        for name in ("update_seconds", "seconds", "engine_seconds", "storing_seconds")
    }
    return replace(speed, rates=rates, **slowest)


def _estimate(piece: PlannedWork, speed: Speed | None) -> PlannedWork:
    if piece.kind == FIXED:
        return piece
    if piece.reused or not piece.operations:
        return replace(piece, seconds=0.0)
    if speed is None:
        return piece
    return replace(piece, seconds=speed.estimate(piece.kind, piece.operations, piece.counts.steps) / world_size())


def _time_on_one_device(piece: PlannedWork, speed: Speed | None) -> tuple[float, float] | None:
    """Return the seconds of due work that more devices would share, and those that each of them would take."""
    if not piece.operations:
        return 0.0, 0.0
    if speed is None:
        return None
    return speed.estimate(piece.kind, piece.operations, 0), speed.estimate(piece.kind, 0, piece.counts.steps)


def _list_cheaper_work(
    request: PlanRequest,
    context: MeasurementContext,
    base_shape: ModelShape,
    base_passes: Sequence[PlannedWork],
    adapter_plan: AdapterPlan,
) -> list[CheaperWork]:
    """List the work of measuring rows under each change that spares some: cheaper adapters, or none at all."""
    cheaper_work = [
        replace(item, planned_work=[*base_passes, *item.planned_work]) for item in adapter_plan.cheaper_work
    ]
    if adapter_plan.planned_work and request.requests_under_ifd is not None:
        ifd_requests = sort_requests(request.requests_under_ifd)[BASE_MODEL_STAGE]
        ifd_passes = plan_base_model_passes(ifd_requests, context, base_shape)
        cheaper_work.append(CheaperWork("ifd", {}, ifd_passes))
    return cheaper_work


def _find_savings(
    run_seconds: float | None,
    measuring_work: Sequence[PlannedWork],
    cheaper_work: Sequence[CheaperWork],
    speed: Speed | None,
) -> list[Saving]:
    """Name the changes that would make a long run shorter."""
    if speed is None:
        return []

    def time_work(planned_work: Sequence[PlannedWork]) -> list[PlannedWork]:
        return [_estimate(piece, speed) for piece in [*planned_work, *_plan_fixed_work(planned_work, speed)]]

    timed_work = [replace(item, planned_work=time_work(item.planned_work)) for item in cheaper_work]
    return find_savings(run_seconds, time_work(measuring_work), timed_work)


@dataclass(frozen=True)
class BatchMemory:
    """Sources of the estimated memory of a run's stages.

    Attributes:
        present_bytes: taken before the plan was made.
        adapter_plan: of the stages that need adapters.
        models: target models by name; empty where none is trained.
        memories: kind of work without members -> memory of its batches; empty where none was measured.
    """

    present_bytes: int
    adapter_plan: AdapterPlan
    models: Mapping[str, PlannedModel]
    memories: Mapping[str, ChunkMemory]

    def estimate_stages(self, request: PlanRequest, context: MeasurementContext) -> dict[str, int]:
        """Estimate the peak of each stage, in bytes."""
        shape, target = self.adapter_plan.shape, request.target
        losses = self.memories.get("losses")
        base_bytes = memory_estimates.losses_bytes(shape, context.batches.forward_tokens, context.examples, losses)
        ensemble_bytes = memory_estimates.ensemble_bytes(
            shape, context, self.adapter_plan.memory, self.adapter_plan.chunk_tokens
        )
        stage_bytes = dict.fromkeys((REFERENCE_STAGE, BASE_MODEL_STAGE), (base_bytes, 0))
        stage_bytes |= dict.fromkeys((ENSEMBLE_STAGE, TASK_GRADIENT_STAGE, HELDOUT_MEMBER_STAGE), ensemble_bytes)
        if target is not None:
            # Another model than the proxy is estimated by its shapes.
            tuning, answering = (self.memories.get("tuning"), losses) if target.is_proxy else (None, None)
            stage_bytes[TARGET_STAGE] = memory_estimates.tuning_bytes(
                target, self.models, context.examples, context.seed, tuning
            )
            stage_bytes[JUDGE_STAGE] = (0, memory_estimates.answer_bytes(target, answering))
        return {
            stage_name: self.present_bytes + memory_estimates.held_bytes(context.device, lasting, batch)
            for stage_name, (lasting, batch) in stage_bytes.items()
        }


def _build_stages(
    planned_work: Sequence[PlannedWork], request: PlanRequest, context: MeasurementContext, batch_memory: BatchMemory
) -> list[PlannedStage]:
    """Put the work into stages, with the memory and the disk that each takes."""
    stage_bytes = batch_memory.estimate_stages(request, context)
    stage_requests = sort_requests(request.requests)
    stages = []
    for stage_name in PLANNED_STAGES:
        stage_work = [piece for piece in planned_work if piece.stage == stage_name]
        notes = [*request.notes.get(stage_name, ()), *list_uncounted(stage_requests.get(stage_name, []), context)]
        if not stage_work and not notes:
            continue
        is_due = any(piece.operations for piece in stage_work)
        stages.append(
            PlannedStage(
                name=stage_name,
                work=stage_work,
                peak_bytes=stage_bytes[stage_name] if is_due else batch_memory.present_bytes,
                disk_bytes=memory_estimates.disk_bytes(stage_name, stage_work, context, request.target),
                notes=notes,
            )
        )
    return stages


def draw_rows(examples: Examples, row_count: int, seed: int, stream: str = "rows") -> Examples:
    """Draw rows by the seed; the others are listed as unscored, with the reason.

    Args:
        examples: of the pool, or the held-out ones.
        row_count: rows to draw.
        seed: of the run.
        stream: of random numbers.
    """
    total_rows = len(examples)
    drawn_positions = numpy_rng(seed, "plan", stream).permutation(total_rows)[:row_count]
    drawn_examples = examples.select(examples.example_ids[drawn_positions].tolist())
    left_out_ids = np.setdiff1d(examples.example_ids, drawn_examples.example_ids)
    reason = f"not among the {row_count:,} of {total_rows:,} rows drawn for the time given"
    unscored = sorted([*examples.unscored, *((example_id, reason) for example_id in left_out_ids.tolist())])
    return replace(drawn_examples, unscored=unscored, not_shown=examples.not_shown)


def fit_rows(
    request: PlanRequest, settings: PlanSettings, select_budget: Callable[[int], int]
) -> tuple[PlanRequest, RunPlan]:
    """Cut the rows so that the run takes no longer than the time given, and plan it.

    Held-out rows are cut first, to a hundred, then those of the pool; the ensemble stays as it is.

    Args:
        request: of all rows.
        settings: with `minutes`, or None for all rows.
        select_budget: rows of the pool -> rows of the candidate.

    Returns:
        The request with the rows that are taken, and its plan.

    Raises:
        UserError: even a few rows take longer.
    """
    plan = plan_run(request, settings)
    if settings.minutes is None or plan.seconds is None or plan.seconds <= 60 * settings.minutes:
        return request, replace(plan, minutes=settings.minutes, seed=request.context.seed)
    allowed_seconds, all_examples, seed = 60 * settings.minutes, request.context.examples, request.context.seed
    heldout = request.context.heldout
    if heldout is not None and len(heldout) > MOST_HELDOUT_ROWS:
        heldout = draw_rows(heldout, MOST_HELDOUT_ROWS, seed, "held-out rows")
        request = replace(request, context=replace(request.context, heldout=heldout))
        plan = plan_run(request, settings)
    row_count = len(all_examples)
    fitted_request, fitted_plan = request, plan
    for _ in range(MAX_DRAWS):
        planned_rows, row_count = row_count, _rows_for(fitted_plan, row_count, allowed_seconds)
        if row_count < MIN_ROWS:
            fixed_seconds, growing_seconds = _split_seconds(fitted_plan)
            least_seconds = fixed_seconds + growing_seconds * min(1.0, MIN_ROWS / planned_rows)
            longest_stage = max(fitted_plan.stages, key=lambda stage: stage.seconds or 0.0)
            raise UserError(
                f"even {MIN_ROWS} of {len(all_examples):,} rows take longer than {settings.minutes:g} minutes, about "
                f"{math.ceil(least_seconds / 60)}, most of it for {describe_stage(longest_stage.name)}; give "
                f"more time, {LESS_WORK.get(longest_stage.name, 'a smaller model')}, or measure the speed anew when "
                "less else is running",
                owner=settings,
                arguments=("minutes", "fresh"),
            )
        examples = draw_rows(all_examples, row_count, seed)
        target = request.target
        if target is not None:
            target = replace(target, selected_rows=select_budget(row_count))
        fitted_request = replace(
            request, context=replace(request.context, examples=examples), total_rows=row_count, target=target
        )
        fitted_plan = plan_run(fitted_request, settings)
        if fitted_plan.seconds is not None and fitted_plan.seconds <= 1.02 * allowed_seconds:
            break
    return fitted_request, replace(fitted_plan, minutes=settings.minutes, seed=seed, pool_rows=len(all_examples))


def _rows_for(plan: RunPlan, row_count: int, allowed_seconds: float) -> int:
    """Return how many of `row_count` rows take the time, by the work that grows with them."""
    fixed_seconds, growing_seconds = _split_seconds(plan)
    share = (allowed_seconds - fixed_seconds) / growing_seconds if growing_seconds else 1.0
    return max(0, min(row_count - 1, math.floor(row_count * share)))


def _split_seconds(plan: RunPlan) -> tuple[float, float]:
    """Seconds of the work that any number of rows costs, and of the work that grows with the rows."""
    all_work = [piece for stage in plan.stages for piece in stage.work]
    growing_seconds = sum(piece.seconds or 0.0 for piece in all_work if piece.is_per_row)
    return sum(piece.seconds or 0.0 for piece in all_work if not piece.is_per_row), growing_seconds
