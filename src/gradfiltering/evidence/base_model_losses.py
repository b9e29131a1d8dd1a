"""Losses under the base model without adapters."""

import time
from typing import Any

import numpy as np
import torch

from gradfiltering.data.examples import Examples, hash_examples
from gradfiltering.distributed.row_measurements import RowMeasurements
from gradfiltering.evidence.base_model_passes import forward_batches, prepare_base_model
from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.evidence.measurers import Measurer
from gradfiltering.models.causal_model import split_model
from gradfiltering.models.objectives import Objective
from gradfiltering.requests import BaseModelLosses, LossMeasurement
from gradfiltering.runs.cache import CachedResult

LOSS_VERSION = 1  # raise it when the same rows would get other losses
LOSS_FILE = "losses.npy"


class BaseModelLossMeasurer(Measurer[BaseModelLosses]):
    """Measures the losses of scorable and held-out rows."""

    request_type = BaseModelLosses

    def measure(self, request: BaseModelLosses, context: MeasurementContext) -> LossMeasurement:
        """Measure one loss per row, in nats per response token."""
        row_losses = measure_losses(context, context.objective, context.examples)
        if context.heldout is None:
            return LossMeasurement(row_losses, None)
        heldout_losses = measure_losses(context, context.objective, context.heldout)
        return LossMeasurement(row_losses, float(heldout_losses.mean()))


def measure_losses(context: MeasurementContext, objective: Objective, examples: Examples) -> np.ndarray:
    """Return the [N] float64 losses of examples under the base model, from the cache if it has them."""
    key = _losses_key(context, objective, examples)
    cached = find_losses(context, objective, examples)
    if cached is None:
        context.cache.check_writable()
        start_time = time.monotonic()
        losses = _compute_losses(context, objective, examples)
        cached = context.cache.commit(
            "base_model_losses",
            key,
            lambda folder: np.save(folder / LOSS_FILE, losses),
            seconds=time.monotonic() - start_time,
        )
    loaded_losses: np.ndarray = np.load(cached.path / LOSS_FILE)
    return loaded_losses


def find_losses(context: MeasurementContext, objective: Objective, examples: Examples) -> CachedResult | None:
    """Find the losses of examples in the cache."""
    return context.cache.find("base_model_losses", _losses_key(context, objective, examples))


def _losses_key(context: MeasurementContext, objective: Objective, examples: Examples) -> dict[str, Any]:
    return {
        "code": LOSS_VERSION,
        "base_model": context.model_hash,
        "examples": hash_examples(examples),
        "objective": repr(objective),
    }


@torch.inference_mode()
def _compute_losses(context: MeasurementContext, objective: Objective, examples: Examples) -> np.ndarray:
    causal_model = split_model(prepare_base_model(context))
    row_recorder = RowMeasurements(examples.example_ids, ["loss"])
    for batch in forward_batches(context, examples):
        losses = objective(causal_model, batch)  # [B]
        row_recorder.record(batch.example_id.numpy(), loss=losses.float().cpu().numpy())
    return row_recorder.gather()["loss"][0]
