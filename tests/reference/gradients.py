"""The slow, obviously correct twin of every gradient engine: one example and one member at a time, by autograd."""

import torch
from torch import Tensor

from gradfiltering.data.batches import IGNORED


def response_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood of one example's response tokens, token by token."""
    total, count = logits.new_zeros(()), 0
    for position in range(len(labels) - 1):
        target = int(labels[position + 1])
        if target != IGNORED:
            total = total - torch.log_softmax(logits[position], dim=0)[target]
            count += 1
    return total / count


def loop_gradients(model, adapter: dict[str, Tensor], input_ids: Tensor, labels: Tensor) -> tuple[float, dict]:
    """Loss and gradient of one unpadded example.

    Args:
        model: a PEFT model.
        adapter: parameter name -> value of one member.
        input_ids: [T] without padding.
        labels: [T].

    Returns:
        The loss, and parameter name -> gradient.
    """
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in adapter.items():
            parameters[name].copy_(value)
            parameters[name].grad = None
    loss = response_nll(model(input_ids=input_ids[None], use_cache=False).logits[0], labels)
    loss.backward()
    return loss.item(), {name: parameters[name].grad.clone() for name in adapter}


def norm(gradient: dict[str, Tensor]) -> float:
    """L2 norm over all parameters."""
    return float(sum(float(value.double().square().sum()) for value in gradient.values()) ** 0.5)
