"""The gradient engine: cuts work into chunks that fit into memory, and puts the results together."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from gradfiltering.data.batches import Batch
from gradfiltering.errors import UserError
from gradfiltering.gradients.check import check_engine
from gradfiltering.gradients.chunks import Chunk, cut_chunks, example_lengths, is_in_order, original_order, take_chunk
from gradfiltering.gradients.dropout import Dropout, expand_adapters
from gradfiltering.gradients.prefix import FrozenPrefix
from gradfiltering.gradients.statistics import (
    DropoutAccumulator,
    GradientAccumulator,
    GradientMeasurement,
    GradientStatistic,
)
from gradfiltering.models.language_model import context_limit
from gradfiltering.models.lora import Adapters, member_count
from gradfiltering.models.objectives import Objective, ResponseNLL

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)

Computed = TypeVar("Computed")


class GradientEngine(ABC):
    """Computes per-example gradients of stacked adapters on one frozen base model.

    Rows are right-padded and attention is causal, so no attention mask is needed: a response token
    never sees padding.

    Args:
        model: base model with LoRA layers attached; its weights are never changed.
        objective: one loss per example.
        chunk_tokens: members × examples × padded tokens computed at once; bounds memory and changes
            no result. Halved, with a warning, when memory runs out.

    Attributes:
        name: of the engine, for messages and summaries.
        adapter_name: the PEFT model's active adapter; stacked adapters take its place.
        prefix: the layers below the first adapted one, where the engine can go on from what they hand
            on; None where each batch goes through all layers. No result depends on it.
        is_on_trial: whether the rows are invented ones, of shapes that will not come again.
    """

    name: ClassVar[str]

    def __init__(self, model: "PeftModel", objective: Objective, chunk_tokens: int):
        if chunk_tokens < 1:
            raise UserError(f"chunk_tokens must be positive, got {chunk_tokens}")
        self.model = model.eval()
        self.objective = objective
        self.chunk_tokens = chunk_tokens
        self.adapter_name = str(model.active_adapter)
        self.prefix: FrozenPrefix | None = None
        self.is_on_trial = False
        self._checked_device: torch.device | None = None

    @property
    def base_model(self) -> Any:
        """The frozen model under the adapters."""
        return self.model.get_base_model()

    def to(self, device: torch.device) -> None:
        """Move the frozen base model to `device`, and compare a tiny batch with one row at a time there.

        Raises:
            UnsupportedModelError: this engine cannot compute the model's gradients, or not correctly.
        """
        self.model.to(device)
        if device != self._checked_device:
            check_engine(self)
            self._checked_device = device

    @contextmanager
    def on_trial(self) -> Iterator[None]:
        """Learn single responses inside the block, from invented rows, whatever the objective; nothing is kept."""
        objective, self.objective, self.is_on_trial = self.objective, ResponseNLL(), True
        try:
            yield
        finally:
            self.objective, self.is_on_trial = objective, False

    @abstractmethod
    def prepare_model(self) -> None:
        """Choose how the model computes on the device that it is on."""

    def measure(
        self,
        adapters: Adapters,
        batch: Batch,
        with_mean_gradient: bool,
        statistics: Mapping[str, GradientStatistic] | None = None,
        dropout: Dropout | None = None,
    ) -> GradientMeasurement:
        """Measure a batch.

        Args:
            adapters: parameter name -> [M, ...].
            batch: [M, B, T], or [B, T] for the same examples under every member. Its `prefix_states` are
                used where the engine can; else they are made where members share rows.
            with_mean_gradient: also return the mean gradient, the one a training step uses.
            statistics: name -> what else to compute from each example's gradient.
            dropout: of the adapters' inputs, with one stream of masks a member; None for none.

        Raises:
            UnsupportedModelError: this engine cannot compute the model's gradients.
            torch.OutOfMemoryError: not even one example of one member fits.
        """
        measure = partial(
            self._measure_in_chunks,
            adapters,
            with_mean_gradient=with_mean_gradient,
            statistics=statistics or {},
            dropout=dropout,
        )
        return self._fit_into_memory(measure, batch)

    @torch.no_grad()
    def compute_losses(self, adapters: Adapters, batch: Batch, dropout: Dropout | None = None) -> Tensor:
        """Compute the losses of a batch without gradients, half of the work of `measure` or less.

        Args:
            adapters, batch, dropout: see `measure`.

        Returns:
            [M, B], those of `measure` up to rounding.

        Raises:
            UnsupportedModelError: this engine cannot compute with the model.
            torch.OutOfMemoryError: not even one example of one member fits.
        """
        return self._fit_into_memory(partial(self._compute_in_chunks, adapters, dropout=dropout), batch)

    def _fit_into_memory(self, compute: Callable[[Batch], Computed], batch: Batch) -> Computed:
        """Compute a batch, with ever smaller chunks where memory runs out."""
        while True:
            try:
                return compute(batch)
            except torch.OutOfMemoryError:
                least_tokens = _tokens_per_example(batch)
                if self.chunk_tokens <= least_tokens:
                    raise
                self.chunk_tokens = max(least_tokens, self.chunk_tokens // 2)
            # Outside the except block, so that nothing the failed attempt made is still referred to.
            self.release_memory()
            logger.warning(
                "out of memory: going on with %d padded tokens at once; no result depends on it",
                self.chunk_tokens,
            )

    def release_memory(self) -> None:
        """Give back a GPU's memory that is kept for the next batches."""
        torch.cuda.empty_cache()

    def _measure_in_chunks(
        self,
        adapters: Adapters,
        batch: Batch,
        with_mean_gradient: bool,
        statistics: Mapping[str, GradientStatistic],
        dropout: Dropout | None,
    ) -> GradientMeasurement:
        batch = self._add_prefix_states(batch)
        groups = self._cut_into_chunks(adapters, batch)
        group_results = []
        for chunks in groups:
            stack = {name: stacked[chunks[0].members] for name, stacked in adapters.items()}
            chunk_results = []
            for chunk in chunks:
                chunk_batch = take_chunk(batch, chunk)
                if dropout is None:
                    accumulator = GradientAccumulator(with_mean_gradient, statistics)
                    chunk_results.append(self._measure_chunk(stack, chunk_batch, accumulator))
                else:
                    input_factors = _draw_factors(dropout, stack, chunk_batch, chunk)
                    chunk_results.append(
                        self._measure_with_dropout(
                            stack,
                            chunk_batch,
                            DropoutAccumulator(with_mean_gradient, statistics, input_factors),
                        )
                    )
            group_results.append(_reorder_examples(_join_examples(chunk_results), original_order(chunks)))
        return _join_members(group_results, batch.example_id.shape[-1] if with_mean_gradient else None)

    def _compute_in_chunks(self, adapters: Adapters, batch: Batch, dropout: Dropout | None) -> Tensor:
        batch = self._add_prefix_states(batch)
        group_losses = []
        for chunks in self._cut_into_chunks(adapters, batch):
            stack = {name: stacked[chunks[0].members] for name, stacked in adapters.items()}
            chunk_losses = []
            for chunk in chunks:
                chunk_batch = take_chunk(batch, chunk)
                if dropout is None:
                    chunk_losses.append(self._compute_chunk_losses(stack, chunk_batch))
                else:
                    expanded = _expand_members(stack, chunk_batch, _draw_factors(dropout, stack, chunk_batch, chunk))
                    chunk_losses.append(self._compute_chunk_losses(*expanded).view(chunk.shape))
            group_losses.append(_reorder_rows(torch.cat(chunk_losses, 1), original_order(chunks)))
        return torch.cat(group_losses)

    def _cut_into_chunks(self, adapters: Adapters, batch: Batch) -> list[list[Chunk]]:
        sequences = batch.input_ids.shape[batch.example_id.dim() : -1].numel()
        device_type = self.model.device.type
        groups = cut_chunks(example_lengths(batch), member_count(adapters), self.chunk_tokens, device_type, sequences)
        if device_type == "cpu":
            return groups
        # Each shape costs a GPU preparations of its own.
        most_tokens = context_limit(self.base_model.config)
        return [[chunk.widen(most_tokens, self.chunk_tokens // sequences) for chunk in chunks] for chunks in groups]

    def _add_prefix_states(self, batch: Batch) -> Batch:
        """Add what enters the first adapted layer, made once for all members; drop it where it cannot be used."""
        return batch if batch.prefix_states is None else replace(batch, prefix_states=None)

    def _measure_with_dropout(
        self, adapters: Adapters, batch: Batch, accumulator: DropoutAccumulator
    ) -> GradientMeasurement:
        """Measure each example under adapters of its own, with the columns of dropped inputs 0."""
        return self._measure_chunk(*_expand_members(adapters, batch, accumulator.input_factors), accumulator)

    @abstractmethod
    def _measure_chunk(self, adapters: Adapters, batch: Batch, accumulator: GradientAccumulator) -> GradientMeasurement:
        """Measure one chunk at once.

        Args:
            adapters: parameter name -> [M, ...].
            batch: [M, B, T], or [B, T] for the same examples under every member.
            accumulator: takes in the gradients.
        """

    @abstractmethod
    def _compute_chunk_losses(self, adapters: Adapters, batch: Batch) -> Tensor:
        """Compute the [M, B] losses of one chunk at once, without gradients; arguments as of `_measure_chunk`."""


def _draw_factors(dropout: Dropout, adapters: Adapters, batch: Batch, chunk: Chunk) -> Adapters:
    """Draw what the inputs of a chunk's adapters are multiplied by; name of each A -> [M, B, D_in]."""
    example_ids = batch.example_id.expand(chunk.shape).cpu().numpy()
    return dropout.draw_factors(example_ids, chunk.members, adapters)


def _expand_members(adapters: Adapters, batch: Batch, input_factors: Adapters) -> tuple[Adapters, Batch]:
    """Give each example adapters of its own, with their inputs dropped: a stack of M·B members of one example each."""
    example_axes = batch.example_id.dim()
    stack_shape = next(iter(input_factors.values())).shape[:2]

    def give_each_example_a_member(tensor: Tensor) -> Tensor:
        every_member = tensor.expand(*stack_shape, *tensor.shape[example_axes:])
        return every_member.flatten(0, 1)[:, None]  # [M·B, 1, ...]

    return expand_adapters(adapters, input_factors), batch.map_tensors(give_each_example_a_member)


def _tokens_per_example(batch: Batch) -> int:
    """Padded tokens of one example, over all of its sequences."""
    return batch.input_ids.shape[batch.example_id.dim() :].numel()


def _join_examples(chunks: list[GradientMeasurement]) -> GradientMeasurement:
    """Join chunks of different examples under the same members; gradients are summed."""
    if len(chunks) == 1:
        return chunks[0]
    gradient_sums: Adapters = {}
    for chunk in chunks:
        for parameter_name, gradient_sum in (chunk.mean_gradient or {}).items():
            earlier_sum = gradient_sums.get(parameter_name)
            gradient_sums[parameter_name] = gradient_sum if earlier_sum is None else earlier_sum + gradient_sum
    return _concatenate(chunks, gradient_sums, axis=1)


def _reorder_examples(measurement: GradientMeasurement, order: np.ndarray) -> GradientMeasurement:
    """Put the examples of each member, or of all alike, in this order, [members or 1, B]."""
    if is_in_order(order):
        return measurement
    return replace(
        measurement,
        loss=_reorder_rows(measurement.loss, order),
        grad_norm=_reorder_rows(measurement.grad_norm, order),
        statistics={name: _reorder_rows(values, order) for name, values in measurement.statistics.items()},
    )


def _reorder_rows(values: Tensor, order: np.ndarray) -> Tensor:
    """Put the examples of each member, [M, B, ...], in this order, [M or 1, B]."""
    if is_in_order(order):
        return values
    positions = torch.from_numpy(order).expand(values.shape[:2]).to(values.device)
    every_value = positions.view(*positions.shape, *[1] * (values.dim() - 2))
    return values.gather(1, every_value.expand(values.shape))


def _join_members(stacks: list[GradientMeasurement], example_count: int | None) -> GradientMeasurement:
    """Join the same examples under different members; summed gradients become means."""
    mean_gradient = None
    if example_count is not None:
        stack_sums = [stack.mean_gradient or {} for stack in stacks]
        parameter_names = list(stack_sums[0])
        sums = [
            stack_sums[0][name] if len(stacks) == 1 else torch.cat([sums[name] for sums in stack_sums])
            for name in parameter_names
        ]
        means = torch._foreach_div(sums, example_count)  # all at once, as each is short work for a GPU
        mean_gradient = dict(zip(parameter_names, means, strict=True))
    return _concatenate(stacks, mean_gradient, axis=0)


def _concatenate(
    measurements: list[GradientMeasurement], mean_gradient: Adapters | None, axis: int
) -> GradientMeasurement:
    if len(measurements) == 1:
        return replace(measurements[0], mean_gradient=mean_gradient)
    statistics = {
        statistic_name: torch.cat([measurement.statistics[statistic_name] for measurement in measurements], axis)
        for statistic_name in measurements[0].statistics
    }
    return GradientMeasurement(
        loss=torch.cat([measurement.loss for measurement in measurements], axis),
        grad_norm=torch.cat([measurement.grad_norm for measurement in measurements], axis),
        mean_gradient=mean_gradient,
        statistics=statistics,
    )
