"""A scalar with a gradient that was computed elsewhere."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def attach_gradients(
    value: Tensor, parameters: Iterable[Tensor], gradients: Sequence[Tensor], weight: float = 1.0
) -> Tensor:
    """Return a scalar whose backward pass hands each parameter a gradient that is known already.

    Args:
        value: scalar, of which only the number is used.
        parameters: tensors that require gradients.
        gradients: of each of them, of its shape.
        weight: factor of all gradients.
    """
    attached: Tensor = _KnownGradients.apply(value.detach(), gradients, weight, *parameters)  # type: ignore[no-untyped-call]
    return attached


class _KnownGradients(torch.autograd.Function):
    """Takes a kernel or a few, where a sum of products of parameters and gradients takes some for each parameter."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor], weight: float, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)  # freed after the backward pass
        ctx.weight = weight
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer_gradient: Tensor) -> tuple[Tensor | None, ...]:
        factor = outer_gradient * ctx.weight  # on the device: its number is never asked for
        return None, None, None, *torch._foreach_mul(ctx.saved_tensors, factor)
