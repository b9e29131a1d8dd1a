"""Gradients as Adam would apply them, projected in the pass that makes them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradfiltering.errors import UserError
from gradfiltering.gradients.projection import Projection
from gradfiltering.models.lora import Adapters

DIRECTION_VERSION = 1  # raise it when the same gradients and moments would give other directions
MOMENT_NAMES = ("exp_avg", "exp_avg_sq")  # torch.optim.Adam's m and v


def adam_direction(
    gradient: Tensor,
    first_moment: Tensor,
    second_moment: Tensor,
    betas: Sequence[float],
    eps: float,
) -> Tensor:
    r"""Compute \(m / \sqrt{v + ε}\) with the gradient folded into Adam's moments.

    Source: LESS (Xia et al., ICML 2024, sec. 3.1). As in the published code there is no bias
    correction, and ε stands under the root, where Adam adds it beside it.

    Args:
        gradient: [..., P] of one or more examples.
        first_moment: Adam's m, `exp_avg`, of a shape that goes with it.
        second_moment: Adam's v, `exp_avg_sq`, likewise.
        betas: Adam's decay rates.
        eps: ε.

    Returns:
        [..., P], at least float32.
    """
    wide_gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    mean_estimate = betas[0] * first_moment + (1 - betas[0]) * wide_gradient
    square_estimate = betas[1] * second_moment + (1 - betas[1]) * wide_gradient.square()
    return mean_estimate / torch.sqrt(square_estimate + eps)


class AdamProjection:
    """A projection of the direction in which Adam, given an example's gradient, would go.

    A `GradientSketch`. Adam acts on each coordinate by itself, so the direction is made parameter by
    parameter as the gradients come.

    Args:
        projection: of the direction; the same one makes it comparable with projected gradients.
        moments: `exp_avg` and `exp_avg_sq` of one member, parameter name -> [1, ...]. An engine may
            cut a stack of members into groups, and a statistic is not told which it gets.
        betas, eps: Adam's.
    """

    def __init__(
        self,
        projection: Projection,
        moments: dict[str, Adapters],
        betas: Sequence[float],
        eps: float,
    ):
        if not moments:
            raise UserError("Adam has no moments before the first step; give checkpoints after epoch 0")
        self.projection = projection
        self.moments = [dict(moments[moment_name]) for moment_name in MOMENT_NAMES]
        self.betas, self.eps = betas, eps

    @property
    def width(self) -> int:
        """K."""
        return self.projection.width

    @property
    def identity(self) -> dict[str, Any]:
        """Settings that tell it from other projections of a member at an epoch."""
        return {**self.projection.identity, "adam": DIRECTION_VERSION}

    def __call__(self, parameter_name: str, example_gradients: Tensor) -> Tensor:
        """Compute one parameter's part; [1, B, ...] -> [1, B, K]."""
        if len(example_gradients) != 1:
            raise ValueError(f"gradients of {len(example_gradients)} members came, and the moments are those of one")
        for moment in self.moments:
            moment[parameter_name] = moment[parameter_name].to(example_gradients.device)  # moves only once
        first_moment, second_moment = (moment[parameter_name][:, None] for moment in self.moments)
        direction = adam_direction(example_gradients, first_moment, second_moment, self.betas, self.eps)
        return self.projection(parameter_name, direction)
