"""Losses under the base model without adapters."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from gradfiltering.data.examples import Examples, hash_examples
from gradfiltering.distributed.row_measurements import RowMeasurements
from gradfiltering.evidence.base_model_passes import BaseModelWork, forward_batches, prepare_base_model
from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.evidence.measurers import Measurer
from gradfiltering.models.causal_model import split_model
from gradfiltering.models.objectives import Objective, ResponseNLL, SequenceNLL
from gradfiltering.requests import BaseModelLosses, LossMeasurement
from gradfiltering.runs.cache import CachedResult

LOSS_VERSION = 1  # raise it when the same rows would get other losses
LOSS_FILE = "losses.npy"
BASE_MODEL_LOSSES = "base_model_losses"  # kind of results
REFERENCE_STAGE = "reference"  # the base model's log-probabilities of preference rows


class BaseModelLossMeasurer(Measurer[BaseModelLosses]):
    """Measures the losses of scorable and held-out rows; of preference rows, those of the chosen answers."""

    request_type = BaseModelLosses

    def measure(self, request: BaseModelLosses, context: MeasurementContext) -> LossMeasurement:
        """Measure one loss per row, in nats per response token."""
        examples = context.examples
        if examples.is_paired:
            row_losses = measure_losses(context, ResponseNLL(), examples.chosen_sequences())
        else:
            row_losses = measure_losses(context, context.objective, examples)
        heldout_loss = None if context.heldout is None else measure_base_loss(context, context.heldout)
        return LossMeasurement(row_losses, heldout_loss)


def measure_base_loss(context: MeasurementContext, examples: Examples) -> float:
    """Return the mean loss of examples, by the objective of the run, under the base model."""
    return float(measure_losses(context, context.objective, examples).mean())


def measure_base_loss_of_part(context: MeasurementContext, part: Examples) -> float:
    """Return the mean loss of some of the rows, by the objective of the run, under the base model.

    Where the cache has the losses of all rows, as it does in a run that logs gradients, nothing is measured.
    """
    examples = context.examples
    if find_losses(context, context.objective, examples) is None:
        return measure_base_loss(context, part)
    losses = measure_losses(context, context.objective, examples)
    return float(losses[np.searchsorted(examples.example_ids, part.example_ids)].mean())


def add_reference_nll(context: BaseModelWork, examples: Examples) -> Examples:
    """Return preference rows with the base model's losses of their answers, from the cache if it has them.

    Other rows are returned as they are.

    Args:
        context: of the base model that the objective compares with.
        examples: the rows.
    """
    if not examples.is_paired or examples.reference_nll is not None:
        return examples
    sequence_nll = measure_losses(context, SequenceNLL(), examples.sequences())  # [2·N]
    return replace(examples, reference_nll=np.ascontiguousarray(sequence_nll.reshape(2, -1).T))


def find_reference_nll(context: BaseModelWork, examples: Examples) -> CachedResult | None:
    """Find the losses of preference rows' answers in the cache."""
    return find_losses(context, SequenceNLL(), examples.sequences())


def measure_losses(context: BaseModelWork, objective: Objective, examples: Examples) -> np.ndarray:
    """Return the [N] float64 losses of examples under the base model, from the cache if it has them."""
    key = _losses_key(context, objective, examples)
    cached = find_losses(context, objective, examples)
    if cached is None:
        context.cache.check_writable()
        start_time = time.monotonic()
        losses = _compute_losses(context, objective, examples)
        cached = context.cache.commit(
            BASE_MODEL_LOSSES,
            key,
            lambda folder: np.save(folder / LOSS_FILE, losses),
            seconds=time.monotonic() - start_time,
        )
    loaded_losses: np.ndarray = np.load(cached.path / LOSS_FILE)
    return loaded_losses


def find_losses(context: BaseModelWork, objective: Objective, examples: Examples) -> CachedResult | None:
    """Find the losses of examples in the cache."""
    return context.cache.find(BASE_MODEL_LOSSES, _losses_key(context, objective, examples))


def _losses_key(context: BaseModelWork, objective: Objective, examples: Examples) -> dict[str, Any]:
    return {
        "code": LOSS_VERSION,
        "base_model": context.model_hash,
        "examples": hash_examples(examples),
        "objective": repr(objective),
    }


@torch.no_grad()
def _compute_losses(context: BaseModelWork, objective: Objective, examples: Examples) -> np.ndarray:
    causal_model = split_model(prepare_base_model(context))
    row_recorder = RowMeasurements(examples.example_ids, ["loss"])
    for batch in forward_batches(context, examples):
        losses = objective(causal_model, batch)  # [B]
        row_recorder.record(batch.example_id.numpy(), loss=losses.double().cpu().numpy())
    return row_recorder.gather()["loss"].squeeze(0)  # of the one model
