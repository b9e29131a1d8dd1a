"""Per-example gradients by `torch.func`: vmap over members of vmap over examples of grad."""

import re

from peft import PeftModel
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap

from gradfiltering.errors import UserError
from gradfiltering.gradients.engine import GradientEngine, Measurement, Tally
from gradfiltering.models.lora import Adapters
from gradfiltering.models.objectives import Objective


class VmapEngine(GradientEngine):
    """The reference engine: one functional call of the backbone under two nested vmaps."""

    def __init__(self, model: PeftModel, objective: Objective, chunk_tokens: int):
        super().__init__(model, objective, chunk_tokens)
        # The fused attention kernels have no batching rule.
        model.get_base_model().set_attn_implementation("eager")  # type: ignore[operator]
        over_examples = vmap(grad_and_value(self._example_loss), in_dims=(None, 0, 0))
        self._stacked = vmap(over_examples, in_dims=(0, 0, 0))
        self._shared = vmap(over_examples, in_dims=(0, None, None))

    def _chunk(self, adapters: Adapters, input_ids: Tensor, labels: Tensor, tally: Tally) -> Measurement:
        per_example = self._shared if input_ids.dim() == 2 else self._stacked
        try:
            gradients, loss = per_example(adapters, input_ids, labels)
        except RuntimeError as error:
            if not re.search("vmap|transform", str(error)):  # memory, for instance
                raise
            raise UserError(
                f"torch.func cannot take per-example gradients of {type(self.model.get_base_model()).__name__}, which "
                f"does what it does not support: {error}. Try gradients=fused, or choose another proxy.model"
            ) from error
        for name, gradient in gradients.items():
            tally.add(name, gradient)
        return tally.measurement(loss)

    def _example_loss(self, adapter: dict[str, Tensor], input_ids: Tensor, labels: Tensor) -> Tensor:
        # vmap batches positional arguments only, and the model takes keyword ones: hence this function around it.
        logits = functional_call(self.model, adapter, (), {"input_ids": input_ids[None], "use_cache": False}).logits
        return self.objective(logits, labels[None])[0]
