"""Work of the target: fine-tuning of the candidate and its baselines, and the answers of all of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from gradfiltering.data.examples import Examples
from gradfiltering.errors import UserError
from gradfiltering.finetuning.settings import FineTuningSettings
from gradfiltering.finetuning.training_sets import CANDIDATE, TrainingSet, build_baseline_sets
from gradfiltering.judging.generation import GenerationSettings
from gradfiltering.planning.model_shapes import ModelShape
from gradfiltering.planning.operations import (
    forward_operations,
    generation_operations,
    gradient_operations,
    loss_operations,
)
from gradfiltering.planning.row_passes import count_micro_batches, count_pass, count_prompts, count_tuning, cut_prompts
from gradfiltering.planning.run_plan import ANSWERS, PlannedWork
from gradfiltering.selectors.random import RandomSelector

TARGET_STAGE, JUDGE_STAGE = "target", "judge"


class TunedModels(Protocol):
    """Targets and their answers that earlier runs left in the cache."""

    def select_rows(self, examples: Examples, total_rows: int) -> Sequence[int] | None:
        """Select the candidate's rows, where no measurement is needed for that."""

    def find_adapter(self, training_set: TrainingSet, heldout: Examples | None) -> Path | None:
        """Find the adapter that was trained on a set of rows."""

    def has_answers(self, adapter_folder: Path) -> bool:
        """Return True where all answers of a model are there."""


@dataclass(frozen=True)
class PlannedTarget:
    """The target as the plan sees it.

    Attributes:
        shape: of its base model, without adapters.
        settings: of its training.
        baselines: that are trained beside the candidate.
        selected_rows: rows of the candidate.
        is_proxy: the proxy is the same model, so what is timed is timed on the target itself.
        generation: settings of the answers; None where the run ends before.
        prompt_lengths: tokens of the prompts.
        device_type: that it is trained on.
        cached: targets in the cache; None where their keys are not known before the run.
    """

    shape: ModelShape
    settings: FineTuningSettings
    baselines: Sequence[str]
    selected_rows: int
    is_proxy: bool
    generation: GenerationSettings | None = None
    prompt_lengths: Sequence[int] = ()
    device_type: str = "cpu"
    cached: TunedModels | None = None

    @property
    def adapted_shape(self) -> ModelShape:
        """Shape with the adapters that are trained.

        Raises:
            UserError: the target has fewer layers than the settings name.
        """
        lora = self.settings.lora
        try:
            return self.shape.with_adapters(lora.rank, lora.layers)
        except ValueError as error:
            raise UserError(f"layers is {lora.layers}: it {error} (the target)", lora, ("layers",)) from error

    @property
    def estimated_from(self) -> str:
        """Whose speed its estimate is from; empty where it is its own."""
        return "" if self.is_proxy else "the proxy's speed, by shapes"


@dataclass(frozen=True)
class PlannedModel:
    """A target model to be trained, or in the cache.

    Attributes:
        training_set: its rows; random ones stand in where they are not known before the run.
        adapter_folder: of the trained model; None where the cache has none, or that is not known.
    """

    training_set: TrainingSet
    adapter_folder: Path | None


def list_models(
    target: PlannedTarget, examples: Examples, heldout: Examples | None, total_rows: int, seed: int
) -> dict[str, PlannedModel]:
    """List the models that a run compares, by name.

    The candidate's rows are not known yet where rows are measured to select them.

    Args:
        target: model and settings.
        examples: rows that can be trained on, as the proxy reads them.
        heldout: rows of the held-out loss.
        total_rows: all rows of the pool, for budgets.
        seed: of the run.
    """
    settings, cached = target.settings, target.cached
    selected_ids = None if cached is None else cached.select_rows(examples, total_rows)
    candidate_ids = selected_ids
    if candidate_ids is None:
        selected_rows = min(target.selected_rows, len(examples))
        candidate_ids = RandomSelector(None, selected_rows).draw_rows(examples.example_ids, total_rows, seed)
    candidate_updates = settings.epochs * math.ceil(len(candidate_ids) / settings.batch_size)
    training_sets = {CANDIDATE: TrainingSet(candidate_ids)}
    training_sets |= build_baseline_sets(
        target.baselines, candidate_ids, candidate_updates, examples.example_ids, total_rows, seed
    )
    models = {}
    for model_name, training_set in training_sets.items():
        reads_selection = model_name == CANDIDATE or model_name.startswith("subset")
        is_known = selected_ids is not None or not reads_selection
        adapter_folder = cached.find_adapter(training_set, heldout) if cached is not None and is_known else None
        models[model_name] = PlannedModel(training_set, adapter_folder)
    return models


def plan_tuning(
    target: PlannedTarget,
    models: Mapping[str, PlannedModel],
    examples: Examples,
    heldout: Examples | None,
    seed: int,
) -> list[PlannedWork]:
    """Plan the fine-tuning of every model, the held-out losses of its curve included, but for what the cache has.

    Args:
        target: model and settings.
        models: of `list_models`.
        examples: rows that can be trained on, as the proxy reads them.
        heldout: rows of the held-out loss.
        seed: of the run.
    """
    planned_work = []
    knows_start = False  # the loss before training, which the first model measures for all
    for model_name, model in models.items():
        example_ids = model.training_set.example_ids
        model_examples = examples if len(example_ids) == len(examples) else examples.select(example_ids)
        updates = _plan_updates(target, model_name, model, model_examples, seed)
        planned_work.append(updates)
        if examples.is_paired:
            planned_work.append(_plan_base_answers(target, model_name, model, model_examples))
        if heldout is not None:
            points = len(np.unique(np.linspace(0, updates.counts.steps, target.settings.records).round())) - knows_start
            knows_start |= model.adapter_folder is None
            planned_work.append(_plan_heldout_losses(target, model_name, model, heldout, points))
    return planned_work


def _plan_updates(
    target: PlannedTarget, model_name: str, model: PlannedModel, model_examples: Examples, seed: int
) -> PlannedWork:
    """Plan the updates of a model on the rows that it is trained on."""
    settings, shape = target.settings, target.adapted_shape
    counts = count_tuning(model_examples, settings, seed, target.device_type, model.training_set.update_count)
    operations = gradient_operations(shape, counts)
    if settings.gradient_checkpointing:
        operations += forward_operations(shape, counts, with_adapters=True)
    return PlannedWork(
        TARGET_STAGE,
        f"{model_name}: {counts.steps:,} updates on {len(model.training_set.example_ids):,} rows",
        counts,
        operations,
        "tuning",
        reused=model.adapter_folder is not None,
        estimated_from=target.estimated_from,
        step_rows=settings.batch_size,
        exchanged_bytes=4 * shape.adapter_weights,
    )


def _plan_base_answers(
    target: PlannedTarget, model_name: str, model: PlannedModel, model_examples: Examples
) -> PlannedWork:
    """Plan the log-probabilities, under the base model, of both answers of preference rows."""
    counts = count_pass(model_examples.sequences(), target.settings.micro_batch_tokens)
    return PlannedWork(
        TARGET_STAGE,
        f"{model_name}: answers under the base model",
        counts,
        loss_operations(target.shape, counts),
        "losses",
        reused=model.adapter_folder is not None,
        estimated_from=target.estimated_from,
    )


def _plan_heldout_losses(
    target: PlannedTarget, model_name: str, model: PlannedModel, heldout: Examples, points: int
) -> PlannedWork:
    """Plan the held-out losses of a model's curve, of so many points."""
    counts = count_micro_batches(heldout, target.settings, target.device_type).times(points)
    return PlannedWork(
        TARGET_STAGE,
        f"{model_name}: held-out loss, {points} times",
        counts,
        loss_operations(target.adapted_shape, counts, with_adapters=True),
        "losses",
        reused=model.adapter_folder is not None,
        is_per_row=False,
        estimated_from=target.estimated_from,
    )


def plan_answers(target: PlannedTarget, models: Mapping[str, PlannedModel]) -> list[PlannedWork]:
    """Plan the answers of every model, but for those that the cache has.

    Each batch is taken to need all new tokens that an answer may have.

    Args:
        target: model and settings.
        models: of `list_models`.
    """
    if target.generation is None or not target.prompt_lengths:
        return []
    new_tokens, shape = target.generation.max_new_tokens, target.adapted_shape
    batches = cut_prompts(target.prompt_lengths, target.generation.batch_size)
    counts, operations = count_prompts(batches[0]), 0
    for batch_index, batch in enumerate(batches):
        batch_counts = count_prompts(batch)
        counts = batch_counts if batch_index == 0 else counts + batch_counts
        operations += generation_operations(shape, batch_counts, len(batch), new_tokens)
    adapter_folders = [model.adapter_folder for model in models.values()]
    cached_count = sum(
        target.cached is not None and folder is not None and target.cached.has_answers(folder)
        for folder in adapter_folders
    )
    planned_work = []
    for model_count, is_cached in ((len(models) - cached_count, False), (cached_count, True)):
        if not model_count:
            continue
        models_text = f"{model_count} model{'s' if model_count > 1 else ''}"
        planned_work.append(
            PlannedWork(
                JUDGE_STAGE,
                f"{models_text}, {len(target.prompt_lengths):,} prompts, up to {new_tokens} tokens each",
                replace(counts.times(model_count), steps=model_count * len(batches) * new_tokens),
                model_count * operations,
                ANSWERS,
                reused=is_cached,
                is_per_row=False,
                estimated_from=target.estimated_from,
            )
        )
    return planned_work
