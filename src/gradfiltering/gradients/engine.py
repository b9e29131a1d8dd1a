"""What a gradient engine does, and how its work is cut into chunks."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from peft import PeftModel
from torch import Tensor

from gradfiltering.data.batches import Batch
from gradfiltering.errors import UserError
from gradfiltering.gradients.dropout import Dropout, per_example
from gradfiltering.models.lora import Adapters
from gradfiltering.models.objectives import Objective


class Statistic(Protocol):
    """A number, or K of them, kept of each example's gradient while the gradient itself is thrown away.

    It must be a sum over parameters, so that it can be added up while a backward pass goes from layer to layer.
    """

    def __call__(self, name: str, gradient: Tensor) -> Tensor:
        """One parameter's contribution.

        Args:
            name: of the parameter.
            gradient: [M, B, ...], each example's gradient of that parameter.

        Returns:
            [M, B] or [M, B, K].
        """


def squared_norm(name: str, gradient: Tensor) -> Tensor:
    """[M, B, ...] -> [M, B]; at least in float32, whatever the gradient's type."""
    wide = torch.promote_types(gradient.dtype, torch.float32)
    return torch.linalg.vector_norm(gradient, dim=tuple(range(2, gradient.dim())), dtype=wide).square()


@dataclass
class Measurement:
    """Per-example statistics of one batch under M members.

    Attributes:
        loss: [M, B] objective of each example.
        grad_norm: [M, B] L2 norm of the example's gradient over all of the member's adapter parameters
            (GradFiltering, arXiv 2601.13697, eq. 1).
        mean_gradient: parameter name -> [M, ...], mean over the B examples; None unless asked for.
        statistics: name -> [M, B] or [M, B, K], the further statistics asked for.
    """

    loss: Tensor
    grad_norm: Tensor
    mean_gradient: Adapters | None
    statistics: dict[str, Tensor] = field(default_factory=dict)


class Tally:
    """Takes in per-example gradients parameter by parameter and keeps only what was asked for.

    Args:
        want_gradient: keep each parameter's sum over the examples.
        statistics: name -> what else to keep; the squared norm is always kept.

    Attributes:
        wanted: name -> what is kept; empty it to find out what keeping it costs.
    """

    def __init__(self, want_gradient: bool, statistics: Mapping[str, Statistic]):
        self.want_gradient = want_gradient
        self.wanted: dict[str, Statistic] = {"squared_norm": squared_norm, **statistics}
        self.kept: dict[str, Tensor] = {}
        self.sums: Adapters = {}

    def add(self, name: str, gradient: Tensor) -> None:
        """Takes in one parameter's per-example gradients, [M, B, ...]."""
        if self.want_gradient:
            self.sums[name] = gradient.sum(1, dtype=torch.promote_types(gradient.dtype, torch.float32))
        for kind, statistic in self.wanted.items():
            one = statistic(name, gradient)
            self.kept[kind] = self.kept[kind] + one if kind in self.kept else one

    def measurement(self, loss: Tensor) -> Measurement:
        """What was kept; the gradient is still a sum over examples."""
        kept = dict(self.kept)
        norm = kept.pop("squared_norm").sqrt() if "squared_norm" in kept else torch.zeros_like(loss)
        return Measurement(loss, norm, self.sums if self.want_gradient else None, kept)


class DroppedTally(Tally):
    """Takes in the gradients of M·B members on one example each, as those of M members on B examples.

    Args:
        want_gradient, statistics: see `Tally`.
        factors: name of each A -> [M, B, D_in] by which its columns were multiplied.
    """

    def __init__(self, want_gradient: bool, statistics: Mapping[str, Statistic], factors: Adapters):
        super().__init__(want_gradient, statistics)
        self.factors = factors
        self.shape = next(iter(factors.values())).shape[:2]

    def add(self, name: str, gradient: Tensor) -> None:
        """Takes in one parameter's gradients, [M·B, 1, ...]."""
        own = gradient.flatten(0, 1).unflatten(0, self.shape)
        super().add(name, own * self.factors[name][:, :, None].to(own.dtype) if name in self.factors else own)

    def measurement(self, loss: Tensor) -> Measurement:
        """What was kept; `loss` is [M·B, 1]."""
        return super().measurement(loss.view(self.shape))


class GradientEngine(ABC):
    """Computes per-example gradients of stacked adapters on one frozen backbone.

    Rows are right-padded and attention is causal, so no attention mask is needed: a response token never sees padding.

    Args:
        model: backbone with LoRA layers attached; its weights are never changed.
        objective: one loss per example.
        chunk_tokens: members × examples × padded tokens computed at once; bounds memory and changes no result. Halved,
            with a warning, when memory runs out.
    """

    def __init__(self, model: PeftModel, objective: Objective, chunk_tokens: int):
        if chunk_tokens < 1:
            raise UserError(f"batch.tokens={chunk_tokens}: give a positive number of tokens")
        self.model = model.eval()
        self.objective = objective
        self.chunk_tokens = chunk_tokens

    def to(self, device: torch.device) -> None:
        """Moves the frozen backbone to `device`."""
        self.model.to(device)

    def measure(
        self,
        adapters: Adapters,
        batch: Batch,
        want_gradient: bool,
        statistics: Mapping[str, Statistic] | None = None,
        dropout: Dropout | None = None,
    ) -> Measurement:
        """Measures a batch.

        Args:
            adapters: parameter name -> [M, ...].
            batch: [M, B, T], or [B, T] for the same examples under every member.
            want_gradient: also return the mean gradient, the one a training step uses.
            statistics: what else to keep of each example's gradient.
            dropout: of the adapters' inputs, with one pass a member; None for none.

        Raises:
            torch.OutOfMemoryError: not even one example of one member fits.
        """
        while True:
            try:
                return self._measure(adapters, batch, want_gradient, statistics or {}, dropout)
            except torch.OutOfMemoryError:
                least = batch.input_ids.shape[-1]
                if self.chunk_tokens <= least:
                    raise
                self.chunk_tokens = max(least, self.chunk_tokens // 2)
            # Outside the except block, so that nothing the failed attempt made is still referred to.
            torch.cuda.empty_cache()
            warnings.warn(
                f"out of memory: going on with batch.tokens={self.chunk_tokens}; no result depends on it", stacklevel=2
            )

    def _measure(
        self,
        adapters: Adapters,
        batch: Batch,
        want_gradient: bool,
        statistics: Mapping[str, Statistic],
        dropout: Dropout | None,
    ) -> Measurement:
        members = next(iter(adapters.values())).shape[0]
        shared = batch.input_ids.dim() == 2
        examples, width = batch.input_ids.shape[-2:]
        group = max(1, min(members, self.chunk_tokens // width))
        most = max(1, min(examples, self.chunk_tokens // (group * width)))
        rows = -(-examples // -(-examples // most))  # chunks of equal size, none a small rest
        lines = []
        for first in range(0, members, group):
            own = slice(first, first + group)
            some = {name: value[own] for name, value in adapters.items()}
            line = []
            for start in range(0, examples, rows):
                few = slice(start, start + rows)
                index = few if shared else (own, few)
                ids, labels = batch.input_ids[index], batch.labels[index]
                if dropout is None:
                    line.append(self._chunk(some, ids, labels, Tally(want_gradient, statistics)))
                else:
                    known = batch.example_id.expand(members, examples)[own, few].cpu().numpy()
                    factors = dropout.factors(known, own, some)
                    line.append(self._dropped(some, ids, labels, DroppedTally(want_gradient, statistics, factors)))
            lines.append(_joined(line))
        mean = None
        if want_gradient:
            totals = [line.mean_gradient or {} for line in lines]
            mean = {name: torch.cat([total[name] for total in totals]) / examples for name in adapters}
        return Measurement(
            loss=torch.cat([line.loss for line in lines]),
            grad_norm=torch.cat([line.grad_norm for line in lines]),
            mean_gradient=mean,
            statistics={kind: torch.cat([line.statistics[kind] for line in lines]) for kind in lines[0].statistics},
        )

    def _dropped(self, adapters: Adapters, input_ids: Tensor, labels: Tensor, tally: DroppedTally) -> Measurement:
        """`_chunk` with each example under adapters of its own, in which the columns of dropped inputs are 0."""
        shape = (*tally.shape, input_ids.shape[-1])
        ids, labels = (one.expand(shape).flatten(0, 1)[:, None] for one in (input_ids, labels))  # [M·B, 1, T]
        return self._chunk(per_example(adapters, tally.factors), ids, labels, tally)

    @abstractmethod
    def _chunk(self, adapters: Adapters, input_ids: Tensor, labels: Tensor, tally: Tally) -> Measurement:
        """Measures what is computed at once.

        Args:
            adapters: parameter name -> [M, ...].
            input_ids: [M, B, T], or [B, T] for the same examples under every member.
            labels: the same shape.
            tally: takes in the gradients.
        """


def _joined(parts: list[Measurement]) -> Measurement:
    """Chunks of different examples under the same members as one; gradients are summed."""
    sums: Adapters = {}
    for part in parts:
        for name, value in (part.mean_gradient or {}).items():
            sums[name] = sums[name] + value if name in sums else value
    return Measurement(
        loss=torch.cat([part.loss for part in parts], 1),
        grad_norm=torch.cat([part.grad_norm for part in parts], 1),
        mean_gradient=sums,
        statistics={kind: torch.cat([part.statistics[kind] for part in parts], 1) for kind in parts[0].statistics},
    )
