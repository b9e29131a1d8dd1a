"""Losses of a plain model, for fine-tuning."""

from collections.abc import Iterable

import torch

from gradfiltering.data.batches import Batch
from gradfiltering.distributed.process_group import gather_from_ranks
from gradfiltering.models.causal_model import split_model
from gradfiltering.models.objectives import Objective


@torch.inference_mode()
def response_losses(
    model: torch.nn.Module, objective: Objective, batches: Iterable[Batch], device: torch.device
) -> dict[int, float]:
    """Return the objective of each example, by example id; `batches` are this rank's share."""
    model.to(device).eval()
    causal_model = split_model(model)
    losses: dict[int, float] = {}
    for batch in batches:
        batch_losses = objective(causal_model, batch.to(device)).float().cpu()
        losses.update(zip(batch.example_id.tolist(), batch_losses.tolist(), strict=True))
    return {example_id: loss for rank_losses in gather_from_ranks(losses) for example_id, loss in rank_losses.items()}
