"""The stages of a run that need adapters: their work, and what timing a part of it shows."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from gradfiltering.data.validation_rows import validation_rows
from gradfiltering.ensembles.snapshots import Timeline
from gradfiltering.ensembles.trained_ensemble import EnsembleCosts, TrainedEnsemble
from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.evidence.ensemble_passes import attach_ensemble
from gradfiltering.evidence.measurers import ENSEMBLE_STAGE, TASK_GRADIENT_STAGE
from gradfiltering.evidence.task_gradients import take_members
from gradfiltering.gradients.memory import ChunkMemory, measure_chunk_memory
from gradfiltering.planning.calibration import time_engine, time_gradients, time_storing, time_update
from gradfiltering.planning.ensemble_work import (
    plan_ensemble,
    plan_frozen_layers,
    plan_heldout_member,
    plan_task_gradients,
)
from gradfiltering.planning.model_shapes import ModelShape, read_shape
from gradfiltering.planning.plan_request import PlanRequest
from gradfiltering.planning.run_plan import PlannedWork
from gradfiltering.planning.run_speed import hash_shape, is_worth_timing
from gradfiltering.planning.savings import CheaperWork, plan_cheaper_work
from gradfiltering.planning.stored_calibration import StoredCalibration, describe_lengths
from gradfiltering.requests import GradientLog, Projections, Request, TaskGradients

NOMINAL_TOKENS = 2048  # padded tokens at once, before it is known what fits

logger = logging.getLogger(__name__)


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


def plan_adapters(
    request: PlanRequest,
    context: MeasurementContext,
    stage_requests: Mapping[str, Sequence[Request[Any]]],
    plan_requested: bool,
    calibration: StoredCalibration,
) -> AdapterPlan:
    """Plan the stages that need adapters; where they are long, settle what is computed at once, and time it."""
    with attach_ensemble(context, EnsembleCosts(), context.heldout) as trained_ensemble:
        shape = read_shape(trained_ensemble.model)
        engine_seconds = time_engine(trained_ensemble)  # the engine finds out which layers members share
        planned_work = _plan_ensembles(stage_requests, request, context, trained_ensemble, shape, NOMINAL_TOKENS)
        if not is_worth_timing(planned_work, plan_requested):
            return AdapterPlan(planned_work, shape)
        settings = {
            "shape": hash_shape(shape),
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


def _plan_ensembles(
    stage_requests: Mapping[str, Sequence[Request[Any]]],
    request: PlanRequest,
    context: MeasurementContext,
    trained_ensemble: TrainedEnsemble,
    shape: ModelShape,
    chunk_tokens: int,
) -> list[PlannedWork]:
    """Plan the stages that need adapters."""
    ensemble_work: list[PlannedWork] = []
    gradient_work: list[PlannedWork] = []
    heldout_member_work: list[PlannedWork] = []
    frozen_work: list[PlannedWork] = []
    ensemble_requests, trained_epochs = stage_requests.get(ENSEMBLE_STAGE, []), 0
    logs_gradients = GradientLog() in ensemble_requests
    if ensemble_requests:
        projections = next((item for item in ensemble_requests if isinstance(item, Projections)), None)
        epochs = [context.snapshots.early, context.snapshots.late]
        ensemble_work = plan_ensemble(
            trained_ensemble, epochs, context, shape, chunk_tokens, logs_gradients, projections
        )
        if logs_gradients and context.heldout is not None:
            frozen_work += plan_frozen_layers(trained_ensemble, "held-out rows", context.heldout, shape, ensemble_work)
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
            item_work = plan_task_gradients(
                item, members, validation, shape, chunk_tokens, epochs_before, context.projection
            )
            frozen_work += plan_frozen_layers(members, "validation rows", validation, shape, item_work)
            gradient_work += item_work
    if request.heldout_member is not None and logs_gradients:
        split = request.heldout_member.split(context.examples, context.heldout is not None, context.seed)
        if split is not None:
            snapshots = [context.snapshots.early, context.snapshots.late]
            heldout_member_work = plan_heldout_member(trained_ensemble, split, snapshots, shape, chunk_tokens, context)
    adapter_work = [*ensemble_work, *gradient_work, *heldout_member_work]
    frozen_work = [
        *plan_frozen_layers(trained_ensemble, "all rows", context.examples, shape, adapter_work, is_per_row=True),
        *frozen_work,
    ]
    return [*frozen_work, *adapter_work]
