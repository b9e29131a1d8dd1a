"""Models that make tensors while they are measured, as on a GPU, and then train with them."""

from typing import Any

import torch
from torch import Tensor, nn


def make_tensors_anew_when_moved(model: nn.Module) -> None:
    """Let `model.to` make new weights and buffers even on the CPU, as moving to a GPU does."""

    def move(*arguments: Any, **options: Any) -> nn.Module:
        return model._apply(torch.clone)

    model.to = move  # type: ignore[method-assign]


def multiply_by_growing_table(norm: nn.Module) -> None:
    """Multiply what a module returns by a table of ones that is made anew for each wider batch.

    Some models hold tables of positions so. Training saves the table for its backward pass.
    """
    tables = [torch.ones(0, 1)]

    def multiply(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        width = output.shape[1]
        if len(tables[0]) < width:
            tables[0] = output.new_ones(width, 1)
        return output * tables[0][:width]

    norm.register_forward_hook(multiply)
