"""The speed of a run: which work is worth timing, and the timing of all work but that of the ensemble."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from gradfiltering.distributed.process_group import gather_from_ranks
from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.gradients.memory import ChunkMemory
from gradfiltering.models.adapted_layers import ALL_LAYERS
from gradfiltering.planning.calibration import MeasuredWork, Speed, measure_losses, measure_tuning, time_answers
from gradfiltering.planning.model_shapes import ModelShape
from gradfiltering.planning.plan_request import PlanRequest
from gradfiltering.planning.run_plan import PlannedWork
from gradfiltering.planning.stored_calibration import StoredCalibration, describe_lengths
from gradfiltering.runs.files import hash_key

SLOW_RATE = 5e9  # operations per second of a slow processor; work that is short at this rate is not timed
SHORT_SECONDS = 5.0


def hash_shape(shape: ModelShape) -> str:
    """Digest of a model's shape, for the keys of measured speeds."""
    return hash_key(asdict(shape))


def measure_work_outside_ensemble(
    request: PlanRequest,
    context: MeasurementContext,
    shape: ModelShape,
    planned_work: Sequence[PlannedWork],
    calibration: StoredCalibration,
) -> tuple[dict[str, float], dict[str, ChunkMemory]]:
    """Measure the due work that is not the ensemble's (losses, fine-tuning, answers), on the proxy, which is loaded.

    Returns:
        Kind of work -> operations per second; kind of work -> memory of its batches.
    """
    settings = {
        "shape": hash_shape(shape),
        "lengths": describe_lengths(context.examples),
        "batch_tokens": context.batches.forward_tokens(context.device),
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
        if not target.is_proxy:  # the proxy may lack the layers that are named of the target
            tuning = replace(tuning, lora=replace(tuning.lora, layers=ALL_LAYERS))
        tuning_settings = {
            "adapted": hash_shape(shape.with_adapters(tuning.lora.rank, tuning.lora.layers)),
            "tuning": [tuning.micro_batch_tokens, repr(tuning.lora.target_modules), repr(tuning.lora.layers)],
            "recomputes_layers": tuning.gradient_checkpointing,
        }
        measure(
            "tuning",
            tuning_settings,
            lambda: measure_tuning(context, tuning),
        )
    rates = {work_kind: measured_work.rate for work_kind, measured_work in measured_works.items()}
    if target is not None and target.generation is not None and "answers" in kinds:
        first_batch = sorted(target.prompt_lengths, reverse=True)[: target.generation.batch_size]
        measured_answers = calibration.measure(
            "answers",
            {**settings, "prompts": len(first_batch), "width": int(np.median(first_batch))},
            lambda: {"rate": time_answers(context, first_batch)},
        )
        rates["answers"] = float(measured_answers["rate"])
    return rates, {work_kind: measured_work.memory for work_kind, measured_work in measured_works.items()}


def is_worth_timing(planned_work: Iterable[PlannedWork], plan_requested: bool) -> bool:
    """Return True for work that is worth timing: the user wants to know, or a slow processor needs seconds for it."""
    operations = sum(piece.operations for piece in planned_work)
    return operations > 0 and (plan_requested or operations / SLOW_RATE > SHORT_SECONDS)


def agree_on_slowest(speed: Speed) -> Speed:
    """Agree on the slowest speed of all processes."""
    speeds = gather_from_ranks(speed)
    rates = {kind: min(rank_speed.rates[kind] for rank_speed in speeds) for kind in speed.rates}
    slowest = {
        name: max(getattr(rank_speed, name) for rank_speed in speeds)
        for name in ("update_seconds", "seconds", "engine_seconds", "storing_seconds")
    }
    return replace(speed, rates=rates, **slowest)
