"""Per-example gradients by `torch.func`: vmap over members of vmap over examples of grad."""

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.func import grad_and_value, vmap

from gradfiltering.data.batches import Batch
from gradfiltering.gradients.attention import EAGER, set_attention
from gradfiltering.gradients.engine import GradientEngine
from gradfiltering.gradients.statistics import GradientAccumulator, GradientMeasurement
from gradfiltering.gradients.unsupported import UnsupportedModelError
from gradfiltering.models.causal_model import FunctionalModel
from gradfiltering.models.lora import Adapters


class VmapEngine(GradientEngine):
    """The reference engine: one functional call of the base model under two nested vmaps."""

    name = "vmap"

    def prepare_model(self) -> None:
        """Take eager attention: the fused attention kernels have no batching rule."""
        set_attention(self.base_model, EAGER)

    def _measure_chunk(self, adapters: Adapters, batch: Batch, accumulator: GradientAccumulator) -> GradientMeasurement:
        gradients, loss = self._map_over_examples(grad_and_value(self._example_loss(batch)), adapters, batch)
        for parameter_name, gradient in gradients.items():
            accumulator.add(parameter_name, gradient)
        return accumulator.result(loss)

    def _compute_chunk_losses(self, adapters: Adapters, batch: Batch) -> Tensor:
        losses: Tensor = self._map_over_examples(self._example_loss(batch), adapters, batch)
        return losses

    def _example_loss(self, batch: Batch) -> Callable[[Adapters, dict[str, Tensor]], Tensor]:
        batch_type: Any = type(batch)

        def compute_loss(adapter: Adapters, example: dict[str, Tensor]) -> Tensor:
            example_batch = batch_type(**{name: value[None] for name, value in example.items()})
            return self.objective(FunctionalModel(self.model, adapter), example_batch)[0]

        return compute_loss

    def _map_over_examples(self, function: Callable[..., Any], adapters: Adapters, batch: Batch) -> Any:
        """Apply a function of one adapter and one example to all members and examples of a chunk."""
        over_examples = vmap(function, in_dims=(None, 0))
        shared_rows = batch.example_id.dim() == 1
        over_members = vmap(over_examples, in_dims=(0, None if shared_rows else 0))
        try:
            return over_members(adapters, batch.tensors)
        except RuntimeError as error:
            if not re.search("vmap|transform", str(error)):  # memory, for instance
                raise
            raise UnsupportedModelError(
                f"torch.func cannot take per-example gradients of {type(self.base_model).__name__}, which does what it "
                f"does not support: {str(error).splitlines()[0]}"
            ) from error
