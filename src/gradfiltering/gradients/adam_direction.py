"""Gradients as Adam would apply them, projected in the pass that makes them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradfiltering.ensembles.training_state import MOMENTS
from gradfiltering.errors import UserError
from gradfiltering.gradients.projection import Projection
from gradfiltering.models.lora import Adapters

DIRECTION_VERSION = 1  # raise it when the same gradients and moments would give other directions


def adam_direction(gradient: Tensor, first: Tensor, second: Tensor, betas: Sequence[float], eps: float) -> Tensor:
    r"""\(m / \sqrt{v + ε}\) with the gradient folded into Adam's moments (LESS, Xia et al., ICML 2024, sec. 3.1).

    As in the published code there is no bias correction, and ε stands under the root, where Adam adds it beside it.

    Args:
        gradient: [..., P] of one or more examples.
        first: Adam's m, `exp_avg`, of a shape that goes with it.
        second: Adam's v, `exp_avg_sq`, likewise.
        betas: Adam's decay rates.
        eps: ε.

    Returns:
        [..., P], at least float32.
    """
    wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    folded = betas[0] * first + (1 - betas[0]) * wide
    spread = betas[1] * second + (1 - betas[1]) * wide.square()
    return folded / torch.sqrt(spread + eps)


class AdamProjection:
    """A projection of the direction in which Adam, given an example's gradient, would go; a `Statistic`.

    Adam acts on each coordinate by itself, so the direction is made parameter by parameter as the gradients come.

    Args:
        projection: of the direction; the same one makes it comparable with projected gradients.
        moments: `exp_avg` and `exp_avg_sq` of one member, parameter name -> [1, ...]. An engine may cut a stack of
            members into groups, and a statistic is not told which it gets.
        betas, eps: Adam's.
    """

    def __init__(self, projection: Projection, moments: dict[str, Adapters], betas: Sequence[float], eps: float):
        if not moments:
            raise UserError("Adam has no moments before the first step; give checkpoints after epoch 0")
        self.projection = projection
        self.moments = [dict(moments[kind]) for kind in MOMENTS]
        self.betas, self.eps = betas, eps

    @property
    def width(self) -> int:
        """K."""
        return self.projection.width

    @property
    def about(self) -> dict[str, Any]:
        """What tells it from other projections of a member at an epoch, whose moments and Adam are known."""
        return {**self.projection.about, "adam": DIRECTION_VERSION}

    def __call__(self, name: str, gradient: Tensor) -> Tensor:
        """One parameter's part; [1, B, ...] -> [1, B, K]."""
        if len(gradient) != 1:
            raise ValueError(f"gradients of {len(gradient)} members came, and the moments are those of one")
        for kept in self.moments:
            kept[name] = kept[name].to(gradient.device)  # moves the first time only
        first, second = (kept[name][:, None] for kept in self.moments)  # [1, 1, ...]
        return self.projection(name, adam_direction(gradient, first, second, self.betas, self.eps))
