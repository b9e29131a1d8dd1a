"""The slow, obviously correct twins of the gradient engines: one example and one member at a time, by autograd."""

from dataclasses import replace
from operator import itemgetter

import torch
from torch import Tensor

from gradfiltering.data.batches import IGNORED, Batch
from gradfiltering.gradients.engine import GradientEngine
from gradfiltering.gradients.statistics import GradientAccumulator, GradientMeasurement
from gradfiltering.models.causal_model import FunctionalModel
from gradfiltering.models.lora import Adapters, member_count


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
    """Compute loss and gradient of one unpadded example.

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


class LoopEngine(GradientEngine):
    """Gradients as most implementations compute them, behind the interface of an engine."""

    name = "loop"

    def prepare_model(self) -> None:
        """Leave the model as it is."""

    def _measure_chunk(self, adapters: Adapters, batch: Batch, accumulator: GradientAccumulator) -> GradientMeasurement:
        members, is_shared = member_count(adapters), batch.example_id.dim() == 1
        losses, gradients = [], []
        for member in range(members):
            parameters = {name: stacked[member].detach().requires_grad_() for name, stacked in adapters.items()}
            rows = batch if is_shared else batch.map_tensors(itemgetter(member))
            for row in range(len(rows.example_id)):
                length = int((rows.labels[row] != IGNORED).nonzero()[:, -1].max()) + 1  # then padding
                example = rows.map_tensors(itemgetter(slice(row, row + 1)))
                example = replace(
                    example, input_ids=example.input_ids[..., :length], labels=example.labels[..., :length]
                )
                with torch.enable_grad():
                    loss = self.objective(FunctionalModel(self.model, parameters), example)[0]
                    gradient = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
                losses.append(loss.detach())
                gradients.append(dict(zip(parameters, gradient, strict=True)))
        for name in adapters:
            # M·B × [...] -> [M, B, ...]
            stacked = torch.stack([gradient[name] for gradient in gradients])
            accumulator.add(name, stacked.unflatten(0, (members, -1)))
        return accumulator.result(torch.stack(losses).view(members, -1))

    def _compute_chunk_losses(self, adapters: Adapters, batch: Batch) -> Tensor:
        return self._measure_chunk(adapters, batch, GradientAccumulator(False, {})).loss
