"""Losses of a plain model, batch by batch."""

import torch

from gradfiltering.models.causal_model import split_model


@torch.no_grad()
def response_losses(model, objective, batches, device) -> dict[int, float]:
    """Example id -> loss in nats per response token."""
    causal_model = split_model(model.to(device).eval())
    losses = {}
    for batch in batches:
        batch_losses = objective(causal_model, batch.to(device)).float().cpu()
        losses.update(zip(batch.example_id.tolist(), batch_losses.tolist(), strict=True))
    return losses
