"""Per-example gradients of all members in one forward and one backward pass.

Members are stacked on the batch axis of the frozen base model, which sees one batch of M·B rows;
the LoRA updates are batched products (`stacked_lora`), and the backward of each LoRA layer makes its
per-example gradients. Their sum over examples is the training gradient, so that recording costs no
extra pass.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradfiltering.data.batches import Batch
from gradfiltering.gradients.attention import (
    EAGER,
    SDPA,
    SDPA_ARGUMENTS,
    EagerAttention,
    rows_not_packed,
    set_attention,
)
from gradfiltering.gradients.body_graph import BodyShape, RecordedBodies, RecordedBody, can_record
from gradfiltering.gradients.check import compare_prefix
from gradfiltering.gradients.engine import GradientEngine
from gradfiltering.gradients.prefix import FrozenPrefix, find_prefix
from gradfiltering.gradients.stacked_lora import StackedForward
from gradfiltering.gradients.statistics import SQUARED_NORM, GradientAccumulator, GradientMeasurement
from gradfiltering.gradients.unsupported import UnsupportedModelError
from gradfiltering.models.causal_model import SplitModel, split_model
from gradfiltering.models.lora import Adapters, member_count
from gradfiltering.models.objectives import Objective

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)

TRIAL_IDS = torch.arange(14).view(2, 7)


class FusedEngine(GradientEngine):
    """One forward and one backward of the base model over members × examples.

    Args:
        model, objective, chunk_tokens: see `GradientEngine`. Adapters may be wider than the base
            model (float32 over bfloat16): they are rounded for the products, their summed gradients
            are float32.
        record_statistics: False leaves out all per-example statistics, to find out what they cost.

    Attributes:
        prefix_refusal: why layers without adapters are computed for each member; empty where they
            are not, or there are none.

    Raises:
        UnsupportedModelError: an adapted layer is not plainly linear, or its adapter not plain LoRA.
    """

    name = "fused"

    def __init__(
        self,
        model: "PeftModel",
        objective: Objective,
        chunk_tokens: int,
        record_statistics: bool = True,
    ):
        from transformers.activations import NewGELUActivation

        super().__init__(model, objective, chunk_tokens)
        self.record_statistics = record_statistics
        self.prefix_refusal = ""
        self.layers = _find_lora_layers(model, self.adapter_name)
        for module in model.modules():
            for child_name, child in module.named_children():
                if isinstance(child, NewGELUActivation):  # the same, in seven unfused operations
                    setattr(module, child_name, nn.GELU(approximate="tanh"))
        self._requested_attention = self.base_model.config._attn_implementation
        self._eager_attention = EagerAttention()
        self._split_model: SplitModel | None = None
        self._recorded_bodies = RecordedBodies()
        self._recorded_matrices: dict[int, Adapters] = {}

    def to(self, device: torch.device) -> None:
        """Move and check the base model as every engine does, and find the frozen prefix.

        The prefix is used where the gradients of two short rows with it equal those without.
        """
        is_checked = device == self._checked_device
        record_statistics, self.record_statistics = self.record_statistics, True  # the check needs them
        try:
            if not is_checked:
                self.prefix = None
            super().to(device)
            if not is_checked:
                self._take_prefix()
        finally:
            self.record_statistics = record_statistics

    def _take_prefix(self) -> None:
        prefix = find_prefix(self.model)
        if prefix is None:
            return
        self.prefix_refusal = compare_prefix(self, prefix)
        if self.prefix_refusal:
            logger.info("layers %s are computed for each member: %s", prefix.layer_range, self.prefix_refusal)
            return
        self.prefix = prefix
        logger.info("layers %s have no adapter and are computed once for all members", prefix.layer_range)

    def compute_prefix_states(self, prefix: FrozenPrefix, input_ids: Tensor) -> Tensor:
        """Compute the hidden states that enter the first adapted layer.

        Args:
            prefix: of the model.
            input_ids: [rows, T] int64, right-padded, on the engine's device.

        Returns:
            [rows, T, D].
        """
        with self._eager_attention.replacing():
            return prefix.compute(input_ids)

    def _add_prefix_states(self, batch: Batch) -> Batch:
        is_shared = batch.example_id.dim() == 1
        if self.prefix is None:
            return super()._add_prefix_states(batch)
        if batch.prefix_states is not None or not is_shared:
            return batch  # rows of each member's own go through all layers once anyway
        sequences = batch.input_ids.flatten(0, -2)  # [rows, T]
        most_sequences = max(1, self.chunk_tokens // sequences.shape[1])
        states = torch.cat(
            [self.compute_prefix_states(self.prefix, chunk) for chunk in sequences.split(most_sequences)]
        )
        return replace(batch, prefix_states=states.view(*batch.input_ids.shape, states.shape[2]))

    @torch.no_grad()
    def prepare_model(self) -> None:
        """Take the attention that is fastest on the device and computes what the model's own does.

        That is products over short rows on a CPU, and SDPA on a GPU, unless the model was loaded
        with eager attention or gives its attention arguments that SDPA ignores.
        """
        set_attention(self.base_model, EAGER)
        with self._eager_attention.comparing():
            trial_ids = TRIAL_IDS.to(self.model.device) % len(self.base_model.get_input_embeddings().weight)
            self.base_model(input_ids=trial_ids, use_cache=False)
        is_sdpa_exact = self._requested_attention != EAGER and self._eager_attention.arguments <= SDPA_ARGUMENTS
        if self.model.device.type != "cpu" and is_sdpa_exact:
            set_attention(self.base_model, SDPA)
        self._split_model = None
        self.release_memory()

    def release_memory(self) -> None:
        """Forget recorded passes, too; their shapes are recorded anew."""
        self._recorded_bodies.clear()
        self._recorded_matrices.clear()
        super().release_memory()

    def _measure_chunk(self, adapters: Adapters, batch: Batch, accumulator: GradientAccumulator) -> GradientMeasurement:
        stack_size = member_count(adapters)
        flat_batch = _flatten_members(batch, stack_size)
        if not self.record_statistics:
            accumulator.statistics = {}
        recorded_body = self._find_recorded_body(adapters, flat_batch, accumulator)
        with torch.enable_grad():
            if recorded_body is None:
                loss = self._compute_flat_losses(adapters, flat_batch, accumulator)
            else:
                loss = self.objective(replace(self._split(flat_batch), body=recorded_body), flat_batch)
            loss.sum().backward()
        flat_losses = loss.detach().view(stack_size, -1)
        if recorded_body is not None:
            return recorded_body.result(flat_losses)
        for parameter_name in sorted(adapters.keys() - accumulator.parameter_names):
            # Adapted layers that take no part, such as those of a vision tower.
            parameter_shape = adapters[parameter_name].shape[1:]
            no_gradient = torch.zeros((), dtype=self.model.dtype, device=self.model.device)
            row_count = len(flat_batch.example_id) // stack_size
            accumulator.add(parameter_name, no_gradient.expand(stack_size, row_count, *parameter_shape))
        return accumulator.result(flat_losses)

    def _find_recorded_body(
        self, adapters: Adapters, flat_batch: Batch, accumulator: GradientAccumulator
    ) -> RecordedBody | None:
        """Find the recorded pass for a batch of [M·B, ...] on a GPU, made ready for these adapters; None for none."""
        causal_model = self._split(flat_batch)
        is_plain = (
            not self.is_on_trial
            and type(accumulator) is GradientAccumulator
            and accumulator.statistics.keys() <= {SQUARED_NORM}
        )
        if not can_record(self.model.device) or causal_model.head_weight is None or not is_plain:
            return None
        stack_size = member_count(adapters)
        prefix_states = flat_batch.prefix_states if self.prefix is not None else None
        *_, token_count = flat_batch.input_ids.shape
        shape = BodyShape(
            rows=flat_batch.input_ids.shape[:-1].numel(),
            tokens=token_count,
            hidden_width=causal_model.head_weight.shape[1],
            members=stack_size,
            examples=len(flat_batch.example_id),
            summed_parameters=_count_parameters(adapters) if accumulator.sum_gradients else 0,
            has_norms=bool(accumulator.statistics),
            has_prefix=prefix_states is not None,
        )
        matrices = self._recorded_matrices.get(stack_size)
        if matrices is None:
            matrices = self._recorded_matrices[stack_size] = self._narrow(adapters)

        def run_body(input_ids: Tensor, kept_states: Tensor | None, own_accumulator: GradientAccumulator) -> Tensor:
            row_shape = (shape.rows, shape.tokens)
            with self._computing(matrices, own_accumulator, shape.examples, row_shape, kept_states):
                hidden_states: Tensor = causal_model.body(input_ids=input_ids, use_cache=False).last_hidden_state
            return hidden_states

        recorded_body = self._recorded_bodies.find(shape, self.model.device, self.model.dtype, run_body)
        if recorded_body is not None:
            with torch.no_grad():
                torch._foreach_copy_(list(matrices.values()), [adapters[name] for name in matrices])
            if prefix_states is not None:
                recorded_body.set_prefix_states(prefix_states)
        return recorded_body

    def _compute_chunk_losses(self, adapters: Adapters, batch: Batch) -> Tensor:
        stack_size = member_count(adapters)
        flat_batch = _flatten_members(batch, stack_size)
        unused_accumulator = GradientAccumulator(sum_gradients=False, statistics={})  # nothing goes backward
        return self._compute_flat_losses(adapters, flat_batch, unused_accumulator).view(stack_size, -1)

    def _compute_flat_losses(self, adapters: Adapters, flat_batch: Batch, accumulator: GradientAccumulator) -> Tensor:
        """Compute the [M·B] losses of a batch of [M·B, ...]; a backward pass reports to the accumulator."""
        causal_model = self._split(flat_batch)
        prefix_states = flat_batch.prefix_states if self.prefix is not None else None
        flat_states = None if prefix_states is None else prefix_states.flatten(0, -3)  # [M·B·S, T, D]
        row_shape = (flat_batch.input_ids.shape[:-1].numel(), flat_batch.input_ids.shape[-1])
        with self._computing(self._narrow(adapters), accumulator, len(flat_batch.example_id), row_shape, flat_states):
            return self.objective(causal_model, flat_batch)

    def _split(self, flat_batch: Batch) -> SplitModel:
        """Return the model, split before its output layer, with the tokens counted that a batch learns."""
        if self._split_model is None:
            self._split_model = split_model(self.model)
        if flat_batch.learned_tokens is None:
            return self._split_model
        token_count = int(flat_batch.learned_tokens.sum())
        return replace(self._split_model, counted_labels=flat_batch.labels, counted_tokens=token_count)

    def _narrow(self, adapters: Adapters) -> Adapters:
        """Copy stacked adapters in the type of the layers that they belong to, as leaves that want gradients."""
        matrices: Adapters = {}
        for layer_name, layer in self.layers.items():
            base_layer: Any = layer.get_base_layer()
            for parameter_name in _parameter_names(layer_name, self.adapter_name).values():
                narrow_value = adapters[parameter_name].detach().to(base_layer.weight.dtype, copy=True)
                matrices[parameter_name] = narrow_value.requires_grad_()
        return matrices

    @contextmanager
    def _computing(
        self,
        matrices: Adapters,
        accumulator: GradientAccumulator,
        example_count: int,
        row_shape: tuple[int, int],
        prefix_states: Tensor | None,
    ) -> Iterator[None]:
        """Let the model compute with stacked adapters and report to the accumulator, perhaps from prefix states on.

        Args:
            matrices: parameter name -> [M, ...] in the type of its layer.
            accumulator: takes in the gradients of a backward pass.
            example_count: M·B.
            row_shape: rows and tokens of the batch.
            prefix_states: [rows, T, D].
        """
        replaced_layers = (
            nullcontext() if self.prefix is None or prefix_states is None else self.prefix.replaced_by(prefix_states)
        )
        try:
            for layer_name, layer in self.layers.items():
                parameter_names = _parameter_names(layer_name, self.adapter_name)
                layer.forward = StackedForward(
                    layer.get_base_layer(),
                    {part: matrices[parameter_name] for part, parameter_name in parameter_names.items()},
                    layer.scaling[self.adapter_name],
                    parameter_names,
                    accumulator,
                    example_count,
                    row_shape,
                )
            with self._eager_attention.replacing(), rows_not_packed(), replaced_layers:
                yield
        finally:
            for layer in self.layers.values():
                layer.__dict__.pop("forward", None)


def _parameter_names(layer_name: str, adapter_name: str) -> dict[str, str]:
    """Return the names of a layer's matrices A and B."""
    return {part: f"{layer_name}.lora_{part}.{adapter_name}.weight" for part in "AB"}


def _count_parameters(adapters: Adapters) -> int:
    """Count the numbers of one member."""
    return sum(stacked[0].numel() for stacked in adapters.values())


def _flatten_members(batch: Batch, stack_size: int) -> Batch:
    """Put the members' rows one after the other: [B, ...], of all members, or [M, B, ...] -> [M·B, ...]."""
    if batch.example_id.dim() == 1:
        batch = batch.map_tensors(lambda tensor: tensor.expand(stack_size, *tensor.shape))
    return batch.map_tensors(lambda tensor: tensor.flatten(0, 1))


def _find_lora_layers(model: "PeftModel", adapter_name: str) -> dict[str, Any]:
    """LoRA layers of an adapter by module name; refuses those that are more than W x + c·B A x."""
    from peft.tuners.lora import LoraLayer

    layers: dict[str, Any] = {}
    for module_name, module in model.named_modules():
        if not isinstance(module, LoraLayer) or adapter_name not in module.scaling:
            continue
        base_layer = module.get_base_layer()
        if not _is_plainly_linear(base_layer):
            raise UnsupportedModelError(
                f"the adapted module {module_name} is a {type(base_layer).__name__}, and the fused engine knows layers "
                "that only multiply by a matrix and add a bias"
            )
        has_bias = module.lora_bias.get(adapter_name, False)
        if has_bias or module.lora_variant.get(adapter_name) is not None:
            raise UnsupportedModelError(
                f"the adapter of {module_name} is a variant of LoRA (such as DoRA, or with biases), which the fused "
                "engine does not know"
            )
        layers[module_name] = module
    return layers


@torch.no_grad()
def _is_plainly_linear(layer: Any) -> bool:
    """Compare a layer, of a subclass perhaps, with the product by its weight."""
    from transformers.pytorch_utils import Conv1D

    if type(layer).forward in (nn.Linear.forward, Conv1D.forward):
        return True
    if not isinstance(layer, nn.Linear) or layer.weight.shape != (layer.out_features, layer.in_features):
        return False
    inputs = torch.linspace(-1, 1, layer.in_features).to(layer.weight)[None]
    outputs = layer(inputs)  # a router gives several
    product = nn.functional.linear(inputs, layer.weight, layer.bias)
    return isinstance(outputs, Tensor) and torch.equal(outputs, product)
