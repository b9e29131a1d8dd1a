"""Per-example gradients by `torch.func`: vmap over members of vmap over examples of grad."""

import re

import torch
from peft import PeftModel
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap

from gradfiltering.data.batches import Batch
from gradfiltering.errors import UserError
from gradfiltering.proxy.gradients import Measurement
from gradfiltering.proxy.lora import Adapters
from gradfiltering.proxy.objective import Objective


class VmapEngine:
    """The reference engine: one functional call of the backbone under two nested vmaps.

    Rows are right-padded and attention is causal, so no attention mask is needed: a response token never sees padding.

    Args:
        model: backbone with LoRA layers attached; its weights are never changed.
        objective: one loss per example.
        chunk_tokens: members × examples × padded tokens computed at once; bounds memory and changes no result.
    """

    def __init__(self, model: PeftModel, objective: Objective, chunk_tokens: int):
        if chunk_tokens < 1:
            raise UserError(f"batch.tokens={chunk_tokens}: give a positive number of tokens")
        self.model = model.eval()
        self.objective = objective
        self.chunk_tokens = chunk_tokens
        over_examples = vmap(grad_and_value(self._example_loss), in_dims=(None, 0, 0))
        self._stacked = vmap(over_examples, in_dims=(0, 0, 0))
        self._shared = vmap(over_examples, in_dims=(0, None, None))

    def to(self, device: torch.device) -> None:
        """Moves the frozen backbone to `device`."""
        self.model.to(device)

    def measure(self, adapters: Adapters, batch: Batch, want_gradient: bool) -> Measurement:
        """Loss, gradient norm and, if asked for, the mean gradient; see `GradientEngine.measure`."""
        members = next(iter(adapters.values())).shape[0]
        examples, width = batch.input_ids.shape[-2:]
        group = max(1, min(members, self.chunk_tokens // width))
        rows = max(1, min(examples, self.chunk_tokens // (group * width)))
        parts = []
        for first in range(0, members, group):
            some = {name: value[first : first + group] for name, value in adapters.items()}
            own = slice(first, first + group)
            parts.append(
                [self._chunk(some, batch, own, start, rows, want_gradient) for start in range(0, examples, rows)]
            )
        mean = None
        if want_gradient:
            sums = [_add([part.mean_gradient for part in line]) for line in parts]
            mean = {name: torch.cat([total[name] for total in sums]) / examples for name in adapters}
        return Measurement(
            loss=torch.cat([torch.cat([part.loss for part in line], 1) for line in parts]),
            grad_norm=torch.cat([torch.cat([part.grad_norm for part in line], 1) for line in parts]),
            mean_gradient=mean,
        )

    def _chunk(
        self, adapters: Adapters, batch: Batch, own: slice, start: int, rows: int, want_gradient: bool
    ) -> Measurement:
        shared = batch.input_ids.dim() == 2
        index = slice(start, start + rows) if shared else (own, slice(start, start + rows))
        per_example = self._shared if shared else self._stacked
        try:
            gradients, loss = per_example(adapters, batch.input_ids[index], batch.labels[index])
        except RuntimeError as error:
            if not re.search("vmap|transform", str(error)):  # memory, for instance
                raise
            raise UserError(
                f"torch.func cannot take per-example gradients of {type(self.model.get_base_model()).__name__}, which "
                f"does what it does not support: {error}. Choose another proxy.model"
            ) from error
        squares = [gradient.flatten(2).square().sum(2) for gradient in gradients.values()]  # [M, B, ...] -> [M, B]
        total = {name: gradient.sum(1) for name, gradient in gradients.items()} if want_gradient else None
        return Measurement(loss=loss, grad_norm=torch.stack(squares).sum(0).sqrt(), mean_gradient=total)

    def _example_loss(self, adapter: dict[str, Tensor], input_ids: Tensor, labels: Tensor) -> Tensor:
        # vmap batches positional arguments only, and the model takes keyword ones: hence this function around it.
        logits = functional_call(self.model, adapter, (), {"input_ids": input_ids[None], "use_cache": False}).logits
        return self.objective(logits, labels[None])[0]


def _add(sums: list[Adapters | None]) -> Adapters:
    total: Adapters = {}
    for one in sums:
        assert one is not None
        for name, value in one.items():
            total[name] = total[name] + value if name in total else value
    return total
