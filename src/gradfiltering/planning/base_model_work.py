"""Work of the base model without adapters: its passes over rows for the evidence of a run."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from gradfiltering.data.examples import Examples, hash_examples
from gradfiltering.evidence.base_model_losses import (
    BASE_MODEL_LOSSES,
    REFERENCE_STAGE,
    find_losses,
    find_reference_nll,
)
from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.evidence.measurers import BASE_MODEL_STAGE
from gradfiltering.evidence.response_losses import pair_sequences
from gradfiltering.models.objectives import ResponseNLL
from gradfiltering.planning.model_shapes import ModelShape
from gradfiltering.planning.operations import TokenCounts, forward_operations, head_operations, loss_operations
from gradfiltering.planning.row_passes import count_pass
from gradfiltering.planning.run_plan import PlannedWork
from gradfiltering.requests import BaseModelLosses, Embeddings, ErrorNorms, Request, ResponseLosses


def plan_base_model_passes(
    requests: Iterable[Request[Any]], context: MeasurementContext, shape: ModelShape
) -> list[PlannedWork]:
    """Plan the passes of the base model without adapters.

    Args:
        requests: of the stage.
        context: models, rows and settings.
        shape: of the base model.
    """
    planned_work = []
    row_counts = count_pass(context.examples.chosen_sequences(), context.batches.forward_tokens(context.device))
    for request in requests:
        if isinstance(request, BaseModelLosses):
            row_sets = [("losses of all rows", context.examples), ("losses of the held-out rows", context.heldout)]
            for description, examples in row_sets:
                if examples is not None:
                    is_cached = _has_losses(context, examples)
                    examples = examples.chosen_sequences()
                    counts = count_pass(examples, context.batches.forward_tokens(context.device))
                    operations = loss_operations(shape, counts)
                    is_per_row = description == "losses of all rows"
                    planned_work.append(
                        PlannedWork(BASE_MODEL_STAGE, description, counts, operations, "losses", is_cached, is_per_row)
                    )
        elif isinstance(request, ErrorNorms):
            operations = forward_operations(shape, row_counts) + head_operations(shape, row_counts.responses)
            planned_work.append(PlannedWork(BASE_MODEL_STAGE, "error norms", row_counts, operations, "losses"))
        elif isinstance(request, Embeddings) and context.embeddings.encoder is None:
            operations = forward_operations(shape, row_counts)
            planned_work.append(PlannedWork(BASE_MODEL_STAGE, "embeddings", row_counts, operations, "losses"))
        elif isinstance(request, ResponseLosses):
            alone = _count_responses_alone(
                context.examples.chosen_sequences(), context.batches.forward_tokens(context.device)
            )
            counts = row_counts + alone
            operations = loss_operations(shape, counts)
            description = "losses of responses, with their prompts and alone"
            is_cached = _has_response_losses(request, context)
            planned_work.append(PlannedWork(BASE_MODEL_STAGE, description, counts, operations, "losses", is_cached))
    return planned_work


def plan_reference(context: MeasurementContext, shape: ModelShape) -> list[PlannedWork]:
    """Plan the base model's log-probabilities of both answers of preference rows; nothing for other rows.

    Args:
        context: models, rows and settings.
        shape: of the base model.
    """
    planned_work = []
    row_sets = [("answers of all rows", context.examples), ("answers of the held-out rows", context.heldout)]
    for description, examples in row_sets:
        if examples is not None and examples.is_paired:
            counts = count_pass(examples.sequences(), context.batches.forward_tokens(context.device))
            planned_work.append(
                PlannedWork(
                    REFERENCE_STAGE,
                    description,
                    counts,
                    loss_operations(shape, counts),
                    "losses",
                    find_reference_nll(context, examples) is not None,
                    examples is context.examples,
                )
            )
    return planned_work


def _has_losses(context: MeasurementContext, examples: Examples) -> bool:
    """Return True where the cache has the base model's losses of rows, of preference rows those of chosen answers."""
    if not examples.is_paired:
        return find_losses(context, context.objective, examples) is not None
    return find_losses(context, ResponseNLL(), examples.chosen_sequences()) is not None


def _has_response_losses(request: ResponseLosses, context: MeasurementContext) -> bool:
    """Return True where the cache has both losses of each response.

    Their key needs the rows tokenised once more, which takes a while for many. So it is looked for only where the cache
    has such losses of this base model at all, of other sequences than the rows as they are trained on.
    """
    described = {"base_model": context.model_hash, "objective": repr(ResponseNLL())}
    row_hashes = {hash_examples(examples) for examples in (context.examples, context.heldout) if examples is not None}
    has_others = any(
        {name: key.get(name) for name in described} == described and key.get("examples") not in row_hashes
        for key in context.cache.list_keys(BASE_MODEL_LOSSES)
    )
    if not has_others:
        return False
    sequences, _ = pair_sequences(request, context.dataset, context.examples, context.base_model)
    return not len(sequences) or find_losses(context, ResponseNLL(), sequences) is not None


def list_uncounted(requests: Iterable[Request[Any]], context: MeasurementContext) -> list[str]:
    """Name the requests whose work is not known: those of other packages, and of a sentence encoder."""
    notes = []
    for request in requests:
        if isinstance(request, Embeddings) and context.embeddings.encoder is not None:
            notes.append(f"embeddings by {context.embeddings.encoder} are not counted")
        elif type(request).__module__ != BaseModelLosses.__module__:
            notes.append(f"{type(request).__name__} is of another package and not counted")
    return notes


def _count_responses_alone(examples: Examples, batch_tokens: int) -> TokenCounts:
    """Count a pass over the responses without their prompts."""
    lengths = np.sort(examples.response_tokens)
    rows_at_once = max(1, batch_tokens // int(lengths.max()))
    counts = TokenCounts()
    for start in range(0, len(lengths), rows_at_once):
        batch_lengths = lengths[start : start + rows_at_once]
        padded = len(batch_lengths) * int(batch_lengths.max())
        token_count = int(batch_lengths.sum())
        counts += TokenCounts(
            len(batch_lengths), token_count, padded, padded * int(batch_lengths.max()), token_count, 1
        )
    return counts
