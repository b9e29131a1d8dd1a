"""Random projections of per-example gradients, parameter by parameter."""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gradfiltering.options import NonNegativeInt, PositiveInt, field, options
from gradfiltering.seeding import derive_seed


class GradientSketch(Protocol):
    """A gradient statistic of K numbers for every row."""

    @property
    def width(self) -> int:
        """K."""

    @property
    def identity(self) -> dict[str, Any]:
        """Settings that tell it from other sketches, JSON-serialisable."""

    def __call__(self, parameter_name: str, example_gradients: Tensor) -> Tensor:
        """Compute one parameter's part; [M, B, ...] -> [M, B, K]."""
        ...


@options
class Projection:
    r"""A count sketch of the whole gradient: each coordinate, signed at random, goes into one of K sums.

    With independent signs the inner product of two sketches is, in expectation, that of the
    gradients, with a variance of about (‖g‖²‖g'‖² + ⟨g, g'⟩²)/K, as for a dense random projection
    (Charikar et al., 2002; Weinberger et al., 2009), but it costs one pass over the gradient and
    needs no matrix. Coordinates are dealt out to the K sums in turn, from a random first one for
    each parameter.

    Attributes:
        width: K.
        seed: of the signs; equal seeds give projections that can be compared.
    """

    width: PositiveInt = 1024
    seed: NonNegativeInt = 0
    _signs_and_shifts: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def identity(self) -> dict[str, Any]:
        """Width and seed."""
        return {"width": self.width, "seed": self.seed}

    def __call__(self, parameter_name: str, example_gradients: Tensor) -> Tensor:
        """Compute one parameter's part of the sketch; [M, B, ...] -> [M, B, K], at least float32."""
        if parameter_name not in self._signs_and_shifts:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "projection", parameter_name))
            shape = example_gradients.shape[2:]
            signs = torch.randint(0, 2, shape, generator=generator, dtype=torch.int8) * 2 - 1
            shift = int(torch.randint(0, self.width, (), generator=generator))
            self._signs_and_shifts[parameter_name] = signs.to(example_gradients.device), shift
        signs, shift = self._signs_and_shifts[parameter_name]
        signed_gradients = (example_gradients * signs).flatten(2)
        turn_count = -(-signed_gradients.shape[2] // self.width)
        missing_coordinates = turn_count * self.width - signed_gradients.shape[2]
        padded_gradients = F.pad(signed_gradients, (0, missing_coordinates))
        wide_dtype = torch.promote_types(example_gradients.dtype, torch.float32)
        turns = padded_gradients.view(*example_gradients.shape[:2], turn_count, self.width)
        return turns.sum(2, dtype=wide_dtype).roll(shift, dims=2)
