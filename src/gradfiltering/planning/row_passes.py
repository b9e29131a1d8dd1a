"""Sizes of passes over rows, from the lengths of the rows and the batches that they really come in."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from gradfiltering.data.batches import LengthBatches, LengthBuckets
from gradfiltering.data.examples import Examples
from gradfiltering.ensembles.lora_ensemble import LoraEnsemble
from gradfiltering.finetuning.settings import FineTuningSettings
from gradfiltering.finetuning.training_loop import BATCH_OVERHEAD, GPU_BATCH_OVERHEAD
from gradfiltering.finetuning.update_schedule import EpochSchedule
from gradfiltering.planning.operations import TokenCounts


def count_batches(examples: Examples, batches: Iterable[np.ndarray]) -> TokenCounts:
    """Count batches of rows, each padded to its longest row.

    Args:
        examples: the rows.
        batches: positions of the rows of each batch.
    """
    counts = TokenCounts()
    for row_positions in batches:
        row_count, width = len(row_positions), int(examples.lengths[row_positions].max())
        counts += TokenCounts(
            rows=row_count,
            tokens=int(examples.lengths[row_positions].sum()),
            padded=row_count * width,
            attended=row_count * width**2,
            responses=int(examples.response_tokens[row_positions].sum()),
            steps=1,
        )
    return counts


def count_pass(examples: Examples, batch_tokens: int, members: int = 1) -> TokenCounts:
    """Count a pass of members over all rows, in batches of like length."""
    return count_batches(examples, LengthBatches(examples, batch_tokens, pad_id=0).cuts).times(members)


def count_training(
    examples: Examples, settings: LoraEnsemble, member_ids: Sequence[int], updates: range, seed: int
) -> TokenCounts:
    """Count updates of a stack of members, numbered from 0; each takes one batch of every member."""
    buckets = LengthBuckets.of(examples.lengths, settings.batch_size, settings.bucket_batches, seed)
    buckets = replace(buckets, resampled=settings.resamples_rows)
    counts = TokenCounts()
    step_count = settings.steps_per_epoch(len(examples))
    for epoch_index in range(updates.start // step_count, -(-updates.stop // step_count)):
        member_batches = [buckets.epoch(member_id, epoch_index + 1) for member_id in member_ids]
        first_update = epoch_index * step_count
        epoch_steps = slice(max(0, updates.start - first_update), updates.stop - first_update)
        steps = list(zip(*member_batches, strict=True))[epoch_steps]
        counts += count_batches(examples, map(np.concatenate, steps))
    return counts


def count_tuning(
    examples: Examples, settings: FineTuningSettings, seed: int, device_type: str, update_count: int | None = None
) -> TokenCounts:
    """Count the fine-tuning of a target; a step is one update, computed in micro-batches.

    Args:
        examples: rows of the model.
        settings: of its training.
        seed: of the run.
        device_type: that it is trained on.
        update_count: updates; None for the epochs of the settings.
    """
    updates = EpochSchedule(len(examples), settings.epochs, settings.batch_size, seed, update_count).updates
    counts = TokenCounts()
    for row_positions in updates:
        counts += count_micro_batches(examples, settings, device_type, row_positions)
    return replace(counts, steps=len(updates))


def count_micro_batches(
    examples: Examples, settings: FineTuningSettings, device_type: str, row_positions: np.ndarray | None = None
) -> TokenCounts:
    """Count some rows, None for all, in the micro-batches that a target is trained and measured with."""
    overhead = BATCH_OVERHEAD.get(device_type, GPU_BATCH_OVERHEAD)
    batches = LengthBatches(examples, settings.micro_batch_tokens, 0, row_positions, batch_overhead=overhead)
    return count_batches(examples, batches.cuts)


def cut_prompts(prompt_lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Cut prompts into the batches that are answered at once, the longest first."""
    longest_first = sorted(prompt_lengths, reverse=True)
    return [longest_first[start : start + batch_size] for start in range(0, len(longest_first), batch_size)]


def count_prompts(prompt_lengths: Sequence[int]) -> TokenCounts:
    """Count one batch of prompts, padded to the longest."""
    row_count, width = len(prompt_lengths), max(prompt_lengths)
    return TokenCounts(row_count, sum(prompt_lengths), row_count * width, row_count * width**2, row_count, 1)
