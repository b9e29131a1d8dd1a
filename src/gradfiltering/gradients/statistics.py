"""Statistics of per-example gradients, added up parameter by parameter."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from gradfiltering.models.lora import Adapters

SQUARED_NORM = "squared norm"  # with a space, so that no function that a user hands in bears the name


class GradientStatistic(Protocol):
    """A number, or K of them, computed from each example's gradient before it is thrown away.

    It must be a sum over parameters, so that it can be added up while a backward pass goes from
    layer to layer.
    """

    def __call__(self, parameter_name: str, example_gradients: Tensor) -> Tensor:
        """Compute one parameter's contribution.

        Args:
            parameter_name: of the parameter.
            example_gradients: [M, B, ...], each example's gradient of that parameter.

        Returns:
            [M, B] or [M, B, K].
        """


def squared_norm(parameter_name: str, example_gradients: Tensor) -> Tensor:
    """Compute squared L2 norms, [M, B, ...] -> [M, B]; at least in float32."""
    wide_dtype = torch.promote_types(example_gradients.dtype, torch.float32)
    parameter_axes = tuple(range(2, example_gradients.dim()))
    norms: Tensor = torch.linalg.vector_norm(example_gradients, dim=parameter_axes, dtype=wide_dtype)
    return norms.square()


@dataclass
class GradientMeasurement:
    """Per-example statistics of one batch under M members.

    Attributes:
        loss: [M, B] objective of each example.
        grad_norm: [M, B] L2 norm of the example's gradient over all of the member's adapter
            parameters (GradFiltering, arXiv 2601.13697, eq. 1).
        mean_gradient: parameter name -> [M, ...], the mean over the B examples, or in the result of a single
            chunk still their sum; None if not requested.
        statistics: name -> [M, B] or [M, B, K], the further statistics requested.
    """

    loss: Tensor
    grad_norm: Tensor
    mean_gradient: Adapters | None
    statistics: dict[str, Tensor] = field(default_factory=dict)


class GradientAccumulator:
    """Reduces per-example gradients, one parameter after the other, to the statistics requested.

    Args:
        sum_gradients: also keep each parameter's sum over the examples.
        statistics: name -> what to compute beside the squared norm.

    Attributes:
        statistics: name -> what is computed; empty it to find out what computing it costs.
        parameter_names: parameters taken in so far.
    """

    def __init__(self, sum_gradients: bool, statistics: Mapping[str, GradientStatistic]):
        self.sum_gradients = sum_gradients
        self.statistics: dict[str, GradientStatistic] = {SQUARED_NORM: squared_norm, **statistics}
        self.statistic_sums: dict[str, Tensor] = {}
        self.gradient_sums: Adapters = {}
        self.parameter_names: set[str] = set()

    def add(self, parameter_name: str, example_gradients: Tensor) -> None:
        """Take in one parameter's per-example gradients, [M, B, ...]."""
        self.parameter_names.add(parameter_name)
        if self.sum_gradients:
            wide_dtype = torch.promote_types(example_gradients.dtype, torch.float32)
            self.gradient_sums[parameter_name] = example_gradients.sum(1, dtype=wide_dtype)
        for statistic_name, statistic in self.statistics.items():
            contribution = statistic(parameter_name, example_gradients)
            if statistic_name in self.statistic_sums:
                contribution = self.statistic_sums[statistic_name] + contribution
            self.statistic_sums[statistic_name] = contribution

    def result(self, loss: Tensor) -> GradientMeasurement:
        """Return the statistics; the gradient is still a sum over examples."""
        statistics = dict(self.statistic_sums)
        squares = statistics.pop(SQUARED_NORM, torch.zeros_like(loss))
        gradient_sums = self.gradient_sums if self.sum_gradients else None
        return GradientMeasurement(loss, squares.sqrt(), gradient_sums, statistics)


class DropoutAccumulator(GradientAccumulator):
    """Reduces gradients of M·B members on one example each, as those of M members on B examples.

    Args:
        sum_gradients, statistics: see `GradientAccumulator`.
        input_factors: name of each A -> [M, B, D_in] by which its columns were multiplied.
    """

    def __init__(
        self,
        sum_gradients: bool,
        statistics: Mapping[str, GradientStatistic],
        input_factors: Adapters,
    ):
        super().__init__(sum_gradients, statistics)
        self.input_factors = input_factors
        self.shape = next(iter(input_factors.values())).shape[:2]

    def add(self, parameter_name: str, example_gradients: Tensor) -> None:
        """Take in one parameter's gradients, [M·B, 1, ...]."""
        example_gradients = example_gradients.flatten(0, 1).unflatten(0, self.shape)
        if parameter_name in self.input_factors:
            input_factors = self.input_factors[parameter_name][:, :, None]  # [M, B, 1, D_in]
            example_gradients = example_gradients * input_factors.to(example_gradients.dtype)
        super().add(parameter_name, example_gradients)

    def result(self, loss: Tensor) -> GradientMeasurement:
        """Return the statistics; `loss` is [M·B, 1]."""
        return super().result(loss.view(self.shape))
