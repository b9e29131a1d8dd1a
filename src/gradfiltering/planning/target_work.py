"""Work of the target: fine-tuning of the candidate and its baselines, and the answers of all of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gradfiltering.data.examples import Examples
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
    """

    shape: ModelShape
    settings: FineTuningSettings
    baselines: Sequence[str]
    selected_rows: int
    is_proxy: bool
    generation: GenerationSettings | None = None
    prompt_lengths: Sequence[int] = ()
    device_type: str = "cpu"

    @property
    def adapted_shape(self) -> ModelShape:
        """Shape with the adapters that are trained."""
        return self.shape.with_adapters(self.settings.lora.rank)

    @property
    def estimated_from(self) -> str:
        """Whose speed its estimate is from; empty where it is its own."""
        return "" if self.is_proxy else "the proxy's speed, by shapes"


def plan_tuning(
    target: PlannedTarget, examples: Examples, heldout: Examples | None, total_rows: int, seed: int
) -> list[PlannedWork]:
    """Plan the fine-tuning of every model, the held-out losses of its curve included.

    The candidate's rows are not known yet; random ones stand in for them.

    Args:
        target: model and settings.
        examples: rows that can be trained on, as the proxy reads them.
        heldout: rows of the held-out loss.
        total_rows: all rows of the pool, for budgets.
        seed: of the run.
    """
    settings, shape = target.settings, target.adapted_shape
    selected_rows = min(target.selected_rows, len(examples))
    candidate_ids = RandomSelector(None, selected_rows).draw_rows(examples.example_ids, total_rows, seed)
    candidate_updates = settings.epochs * math.ceil(len(candidate_ids) / settings.batch_size)
    training_sets = {CANDIDATE: TrainingSet(candidate_ids)}
    training_sets |= build_baseline_sets(
        target.baselines, candidate_ids, candidate_updates, examples.example_ids, total_rows, seed
    )
    planned_work = []
    for model_name, training_set in training_sets.items():
        example_ids, update_count = training_set.example_ids, training_set.update_count
        model_examples = examples if len(example_ids) == len(examples) else examples.select(example_ids)
        counts = count_tuning(model_examples, settings, seed, target.device_type, update_count)
        operations = gradient_operations(shape, counts)
        if settings.gradient_checkpointing:
            operations += forward_operations(shape, counts, with_adapters=True)
        planned_work.append(
            PlannedWork(
                TARGET_STAGE,
                f"{model_name}: {counts.steps:,} updates on {len(example_ids):,} rows",
                counts,
                operations,
                "tuning",
                estimated_from=target.estimated_from,
                step_rows=settings.batch_size,
                exchanged_bytes=4 * shape.adapter_weights,
            )
        )
        if examples.is_paired:
            reference_counts = count_pass(model_examples.sequences(), settings.micro_batch_tokens)
            planned_work.append(
                PlannedWork(
                    TARGET_STAGE,
                    f"{model_name}: answers under the base model",
                    reference_counts,
                    loss_operations(target.shape, reference_counts),
                    "losses",
                    estimated_from=target.estimated_from,
                )
            )
        if heldout is not None:
            points = len(np.unique(np.linspace(0, counts.steps, settings.records).round()))
            heldout_counts = count_micro_batches(heldout, settings, target.device_type).times(points)
            planned_work.append(
                PlannedWork(
                    TARGET_STAGE,
                    f"{model_name}: held-out loss, {points} times",
                    heldout_counts,
                    loss_operations(shape, heldout_counts, with_adapters=True),
                    "losses",
                    is_per_row=False,
                    estimated_from=target.estimated_from,
                )
            )
    return planned_work


def plan_answers(target: PlannedTarget) -> list[PlannedWork]:
    """Plan the answers of every model; each batch is taken to need all new tokens that an answer may have."""
    if target.generation is None or not target.prompt_lengths:
        return []
    new_tokens, shape = target.generation.max_new_tokens, target.adapted_shape
    model_count = 1 + len(target.baselines)
    batches = cut_prompts(target.prompt_lengths, target.generation.batch_size)
    counts, operations = count_prompts(batches[0]), 0
    for batch_index, batch in enumerate(batches):
        batch_counts = count_prompts(batch)
        counts = batch_counts if batch_index == 0 else counts + batch_counts
        operations += generation_operations(shape, batch_counts, len(batch), new_tokens)
    description = f"{model_count} models, {len(target.prompt_lengths):,} prompts, up to {new_tokens} tokens each"
    all_counts = replace(counts.times(model_count), steps=model_count * len(batches) * new_tokens)
    return [
        PlannedWork(
            JUDGE_STAGE,
            description,
            all_counts,
            model_count * operations,
            ANSWERS,
            is_per_row=False,
            estimated_from=target.estimated_from,
        )
    ]
