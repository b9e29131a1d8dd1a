"""Planning of a run: which work each stage has, timed by a calibration of a few seconds where it is worth it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradfiltering.distributed.process_group import world_size
from gradfiltering.ensembles.lora_ensemble import AUTO
from gradfiltering.evidence.base_model_losses import REFERENCE_STAGE
from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.evidence.heldout_member import HELDOUT_MEMBER_STAGE
from gradfiltering.evidence.measurers import BASE_MODEL_STAGE, ENSEMBLE_STAGE, TASK_GRADIENT_STAGE, sort_requests
from gradfiltering.gradients.memory import ChunkMemory
from gradfiltering.planning import memory_estimates
from gradfiltering.planning.adapter_plan import AdapterPlan, plan_adapters
from gradfiltering.planning.base_model_work import list_uncounted, plan_base_model_passes, plan_reference
from gradfiltering.planning.calibration import Speed
from gradfiltering.planning.fleet import count_shares, estimate_fleet_cost
from gradfiltering.planning.model_shapes import ModelShape, read_shape
from gradfiltering.planning.operations import TokenCounts
from gradfiltering.planning.plan_request import PlanRequest
from gradfiltering.planning.plan_settings import PlanSettings
from gradfiltering.planning.run_plan import FIXED, PlannedStage, PlannedWork, RunPlan, Saving, sum_known
from gradfiltering.planning.run_speed import agree_on_slowest, is_worth_timing, measure_work_outside_ensemble
from gradfiltering.planning.savings import CheaperWork, find_savings
from gradfiltering.planning.stored_calibration import StoredCalibration
from gradfiltering.planning.target_work import (
    JUDGE_STAGE,
    TARGET_STAGE,
    PlannedModel,
    list_models,
    plan_answers,
    plan_tuning,
)
from gradfiltering.requests import Request

PLANNED_STAGES = (
    REFERENCE_STAGE, BASE_MODEL_STAGE, ENSEMBLE_STAGE, TASK_GRADIENT_STAGE, HELDOUT_MEMBER_STAGE, TARGET_STAGE,
    JUDGE_STAGE,
)  # fmt: skip

ADAPTER_STAGES = (ENSEMBLE_STAGE, TASK_GRADIENT_STAGE, HELDOUT_MEMBER_STAGE)

logger = logging.getLogger(__name__)


def plan_run(request: PlanRequest, settings: PlanSettings) -> RunPlan:
    """Plan a run; where it takes more than a few seconds, or the user asks for the plan, its speed is measured.

    Args:
        request: the run.
        settings: of the plan.
    """
    context = _settle_members(request)
    stage_requests = sort_requests(request.requests)
    member_count = _count_trained_members(stage_requests, context)
    base_shape = read_shape(context.base_model.model)
    present_bytes = memory_estimates.present_bytes(context.device, base_shape)
    base_passes = plan_base_model_passes(stage_requests.get(BASE_MODEL_STAGE, []), context, base_shape)
    target_models, target_work = _plan_target(request, context)
    planned_work = [*plan_reference(context, base_shape), *base_passes, *target_work]
    calibration = StoredCalibration(context.cache, context.device, settings.fresh)
    plan_requested = settings.only or settings.minutes is not None or settings.fleet.gpus is not None
    adapter_plan = AdapterPlan([], base_shape)
    if member_count:
        context = replace(context, ensemble=replace(context.ensemble, m=member_count))
        adapter_plan = plan_adapters(request, context, stage_requests, plan_requested, calibration)
        planned_work += adapter_plan.planned_work
    speed = None
    memories: Mapping[str, ChunkMemory] = {}
    if is_worth_timing(planned_work, plan_requested):
        rates_outside_ensemble, memories = measure_work_outside_ensemble(
            request, context, base_shape, planned_work, calibration
        )
        speed = _combine_speed(rates_outside_ensemble, adapter_plan, calibration)
        planned_work += _plan_fixed_work(planned_work, speed)
    timed_work = [_estimate(piece, speed) for piece in planned_work]
    batch_memory = BatchMemory(present_bytes, adapter_plan, target_models, memories)
    stages = _build_stages(timed_work, request, context, batch_memory)
    fleet_cost = None
    if settings.fleet.gpus is not None:
        fleet_cost = estimate_fleet_cost(stages, settings.fleet, lambda piece: _time_on_one_device(piece, speed))
    return RunPlan(
        stages=stages,
        rows=len(context.examples),
        pool_rows=len(context.examples),
        members=member_count,
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


def _settle_members(request: PlanRequest) -> MeasurementContext:
    """Settle how many members are planned where their number is searched for, and the snapshots."""
    context = request.context
    if context.ensemble.m == AUTO:
        context = replace(context, ensemble=replace(context.ensemble, m=request.first_members))
    return context.settle_snapshots()


def _count_trained_members(stage_requests: Mapping[str, Sequence[Request[Any]]], context: MeasurementContext) -> int:
    """Return how many members of the ensemble are trained for the requests, counted from the first."""
    all_requests = [request for requests in stage_requests.values() for request in requests]
    ensemble_size = len(context.ensemble.member_ids)
    return max((request.count_members(ensemble_size) for request in all_requests), default=0)


def _plan_target(
    request: PlanRequest, context: MeasurementContext
) -> tuple[Mapping[str, PlannedModel], list[PlannedWork]]:
    """List the models that are fine-tuned, and the work of fine-tuning them and of their answers; none without one."""
    if request.target is None:
        return {}, []
    examples, heldout, seed = context.examples, context.heldout, context.seed
    models = list_models(request.target, examples, heldout, request.total_rows, seed)
    tuning_work = plan_tuning(request.target, models, examples, heldout, seed)
    return models, [*tuning_work, *plan_answers(request.target, models)]


def _combine_speed(
    rates_outside_ensemble: Mapping[str, float],
    adapter_plan: AdapterPlan,
    calibration: StoredCalibration,
) -> Speed:
    """Put together the speed of the ensemble and of other work, and agree with other processes on the slowest."""
    rates = {**rates_outside_ensemble, **adapter_plan.rates}
    rates.setdefault("gradients", rates["losses"])
    logger.info("operations per second by kind of work: %s", {kind: f"{rate:.2e}" for kind, rate in rates.items()})
    return agree_on_slowest(
        Speed(
            rates=rates,
            update_seconds=adapter_plan.update_seconds,
            seconds=calibration.seconds,
            measured_at=calibration.measured_at,
            engine_seconds=adapter_plan.engine_seconds,
            storing_seconds=adapter_plan.storing_seconds,
        )
    )


def _plan_fixed_work(planned_work: Sequence[PlannedWork], speed: Speed) -> list[PlannedWork]:
    """Plan what a stage with members takes whatever its size: checking its engine, storing what was trained."""
    fixed_work = []
    for stage_name in ADAPTER_STAGES:
        due_work = [piece for piece in planned_work if piece.stage == stage_name and piece.operations]
        if due_work:
            stored_members = sum(piece.stored_members for piece in due_work)
            description = "checking the engine" + (", storing members" if stored_members else "")
            seconds = speed.engine_seconds + stored_members * speed.storing_seconds
            fixed_work.append(
                PlannedWork(stage_name, description, TokenCounts(), 0, FIXED, is_per_row=False, seconds=seconds)
            )
    return fixed_work


def _estimate(piece: PlannedWork, speed: Speed | None) -> PlannedWork:
    if piece.kind == FIXED:
        return piece
    if piece.reused or not piece.operations:
        return replace(piece, seconds=0.0)
    timed = _time_on_one_device(piece, speed)
    if timed is None:
        return piece
    shared_seconds, each_seconds = timed
    return replace(piece, seconds=shared_seconds / count_shares(piece, world_size()) + each_seconds)


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
        base_bytes = memory_estimates.losses_bytes(
            shape, context.batches.forward_tokens(context.device), context.examples, losses, context.device.type
        )
        ensemble_bytes = memory_estimates.ensemble_bytes(
            shape, context, self.adapter_plan.memory, self.adapter_plan.chunk_tokens
        )
        stage_bytes = dict.fromkeys((REFERENCE_STAGE, BASE_MODEL_STAGE), (base_bytes, 0))
        stage_bytes |= dict.fromkeys(ADAPTER_STAGES, ensemble_bytes)
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
    stages, device_bytes = [], 0  # of states that a GPU keeps until all rows are measured
    for stage_name in PLANNED_STAGES:
        stage_work = [piece for piece in planned_work if piece.stage == stage_name]
        notes = [*request.notes.get(stage_name, ()), *list_uncounted(stage_requests.get(stage_name, []), context)]
        if not stage_work and not notes:
            continue
        is_due = any(piece.operations for piece in stage_work)
        device_bytes += sum(0 if piece.reused else piece.device_bytes for piece in stage_work)
        peak_bytes = stage_bytes[stage_name] + (device_bytes if stage_name in ADAPTER_STAGES else 0)
        stages.append(
            PlannedStage(
                name=stage_name,
                work=stage_work,
                peak_bytes=peak_bytes if is_due else batch_memory.present_bytes,
                disk_bytes=memory_estimates.disk_bytes(stage_name, stage_work, context, request.target),
                notes=notes,
            )
        )
    return stages
