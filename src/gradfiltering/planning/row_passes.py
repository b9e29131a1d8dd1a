"""Sizes of passes over rows, from the lengths of the rows and the batches that they really come in."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from gradfiltering.data.batches import LengthBatches
from gradfiltering.data.examples import Examples
from gradfiltering.data.length_buckets import LengthBuckets
from gradfiltering.ensembles.lora_ensemble import LoraEnsemble
from gradfiltering.finetuning.settings import FineTuningSettings
from gradfiltering.finetuning.training_loop import BATCH_OVERHEAD, GPU_BATCH_OVERHEAD
from gradfiltering.finetuning.update_schedule import EpochSchedule
from gradfiltering.gradients.chunks import cut_chunks
from gradfiltering.planning.operations import TokenCounts

PADDED_STEPS = 200  # of an ensemble's training, whose padding is counted


def count_batches(examples: Examples, batches: Iterable[np.ndarray]) -> TokenCounts:
    """Count batches of rows, each padded to its longest row.

    Args:
        examples: the rows.
        batches: positions of the rows of each batch.
    """
    counts = TokenCounts()
    for row_positions in batches:
        sequence_count = len(row_positions) * examples.sequence_count
        width = int(examples.widths[row_positions].max())
        counts += TokenCounts(
            rows=len(row_positions),
            tokens=int(examples.lengths[row_positions].sum()),
            padded=sequence_count * width,
            attended=sequence_count * width**2,
            responses=int(examples.response_tokens[row_positions].sum()),
            steps=1,
        )
    return counts


def count_pass(examples: Examples, batch_tokens: int, members: int = 1) -> TokenCounts:
    """Count a pass of members over all rows, in batches of like length."""
    return count_batches(examples, LengthBatches(examples, batch_tokens, pad_id=0).cuts).times(members)


def count_training(
    examples: Examples,
    settings: LoraEnsemble,
    member_ids: Sequence[int],
    updates: range,
    seed: int,
    chunk_tokens: int,
    device_type: str,
) -> TokenCounts:
    """Count updates of a stack of members; each takes one batch of every member, in chunks of like length.

    Of many updates, padding is counted in a part, evenly spaced.

    Args:
        examples: the rows.
        settings: of the ensemble.
        member_ids: of the stack.
        updates: numbered from 0.
        seed: of the run.
        chunk_tokens: padded tokens computed at once, over members.
        device_type: of the device that computes.
    """
    buckets = LengthBuckets.of(examples.widths, settings.batch_size, settings.bucket_batches, seed)
    buckets = replace(buckets, resampled=settings.resamples_rows)
    member_updates = [buckets.updates(member_id, updates.start, updates.stop) for member_id in member_ids]
    steps = [np.stack(step) for step in zip(*member_updates, strict=True)]  # [M, B] positions of rows each
    trained_rows = np.concatenate([step.ravel() for step in steps]) if steps else np.zeros(0, dtype=np.int64)
    part = TokenCounts()
    for step in steps[:: -(-len(steps) // PADDED_STEPS) or 1]:
        for group in cut_chunks(
            examples.widths[step], len(member_ids), chunk_tokens, device_type, examples.sequence_count
        ):
            for chunk in group:
                chunk_rows = step[np.arange(chunk.first_member, chunk.end_member)[:, None], chunk.columns]
                unpadded = int(examples.lengths[chunk_rows].sum())
                padded = examples.sequence_count * chunk.padded_tokens
                part += TokenCounts(tokens=unpadded, padded=padded, attended=padded * chunk.width)
    tokens = int(examples.lengths[trained_rows].sum())
    return TokenCounts(
        rows=len(trained_rows),
        tokens=tokens,
        padded=part.padded * tokens // max(1, part.tokens),
        attended=part.attended * tokens // max(1, part.tokens),
        responses=int(examples.response_tokens[trained_rows].sum()),
        steps=len(steps),
    )


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
    updates = _list_updates(examples, settings, seed, update_count)
    counts = TokenCounts()
    for row_positions in updates:
        counts += count_micro_batches(examples, settings, device_type, row_positions)
    return replace(counts, steps=len(updates))


def list_micro_batches(
    examples: Examples,
    settings: FineTuningSettings,
    seed: int,
    device_type: str,
    update_count: int | None,
    most_updates: int,
) -> list[np.ndarray]:
    """List the positions of the rows in each micro-batch of a target's training.

    Args:
        examples: rows of the model.
        settings: of its training.
        seed: of the run.
        device_type: that it is trained on.
        update_count: updates; None for the epochs of the settings.
        most_updates: of longer trainings so many updates, evenly spaced.
    """
    updates = _list_updates(examples, settings, seed, update_count)
    return [
        row_positions
        for update_positions in updates[:: -(-len(updates) // most_updates) or 1]
        for row_positions in _cut_micro_batches(examples, settings, device_type, update_positions)
    ]


def count_micro_batches(
    examples: Examples, settings: FineTuningSettings, device_type: str, row_positions: np.ndarray | None = None
) -> TokenCounts:
    """Count some rows, None for all, in the micro-batches that a target is trained and measured with."""
    return count_batches(examples, _cut_micro_batches(examples, settings, device_type, row_positions))


def _list_updates(
    examples: Examples, settings: FineTuningSettings, seed: int, update_count: int | None
) -> list[np.ndarray]:
    """List the positions of the rows of each update."""
    return EpochSchedule(len(examples), settings.epochs, settings.batch_size, seed, update_count).updates


def _cut_micro_batches(
    examples: Examples, settings: FineTuningSettings, device_type: str, row_positions: np.ndarray | None
) -> list[np.ndarray]:
    overhead = BATCH_OVERHEAD.get(device_type, GPU_BATCH_OVERHEAD)
    return LengthBatches(examples, settings.micro_batch_tokens, 0, row_positions, batch_overhead=overhead).cuts


def cut_prompts(prompt_lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Cut prompts into the batches that are answered at once, the longest first."""
    longest_first = sorted(prompt_lengths, reverse=True)
    return [longest_first[start : start + batch_size] for start in range(0, len(longest_first), batch_size)]


def count_prompts(prompt_lengths: Sequence[int]) -> TokenCounts:
    """Count one batch of prompts, padded to the longest."""
    row_count, width = len(prompt_lengths), max(prompt_lengths)
    return TokenCounts(row_count, sum(prompt_lengths), row_count * width, row_count * width**2, row_count, 1)
