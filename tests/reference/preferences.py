"""The slow twin of direct preference optimisation: one pair, one sequence and one token at a time."""

import math

import torch
from torch import Tensor

from gradfiltering.data.batches import IGNORED


def sequence_log_probability(model, input_ids: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of one sequence's response, [T] tokens, whose padding is cut off first."""
    length = int((labels != IGNORED).nonzero().max()) + 1
    logits = model(input_ids=input_ids[None, :length], use_cache=False).logits[0]
    total = logits.new_zeros(())
    for position in range(1, length):
        if int(labels[position]) != IGNORED:
            total = total + torch.log_softmax(logits[position - 1], 0)[int(labels[position])]
    return total


def base_log_probabilities(model, batch) -> Tensor:
    """[B, 2] log-probabilities under the base model of a PEFT model, its adapters disabled."""
    with torch.no_grad(), model.disable_adapter():
        return torch.stack(
            [
                torch.stack([sequence_log_probability(model, *side) for side in zip(ids, labels, strict=True)])
                for ids, labels in zip(batch.input_ids, batch.labels, strict=True)
            ]
        )


def pair_gradients(model, adapter: dict[str, Tensor], input_ids: Tensor, labels: Tensor, base: Tensor, beta: float):
    """Loss and gradient of one pair of [2, T] tokens: β·(σ(z) - 1)·(∇log π(chosen) - ∇log π(rejected)).

    Args:
        model: a PEFT model.
        adapter: parameter name -> value of one member.
        input_ids, labels: [2, T], the chosen answer first.
        base: [2] log-probabilities under the base model.
        beta: of the loss.
    """
    parameters = dict(model.named_parameters())
    side_gradients, log_probabilities = [], []
    with torch.no_grad():
        for name, value in adapter.items():
            parameters[name].copy_(value)
    for side in range(2):
        for name in adapter:
            parameters[name].requires_grad_(True).grad = None
        log_probability = sequence_log_probability(model, input_ids[side], labels[side])
        log_probability.backward()
        log_probabilities.append(log_probability.item())
        side_gradients.append({name: parameters[name].grad.clone() for name in adapter})
    margin = beta * ((log_probabilities[0] - base[0].item()) - (log_probabilities[1] - base[1].item()))
    loss = math.log1p(math.exp(-margin))
    factor = -beta / (1 + math.exp(margin))
    chosen, rejected = side_gradients
    return loss, {name: factor * (chosen[name] - rejected[name]) for name in adapter}
