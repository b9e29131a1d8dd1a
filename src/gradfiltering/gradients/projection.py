"""Random projections of per-example gradients, parameter by parameter."""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gradfiltering.errors import UserError
from gradfiltering.seeding import torch_rng


class Sketch(Protocol):
    """A statistic of K numbers that is kept for every row."""

    @property
    def width(self) -> int:
        """K."""

    @property
    def about(self) -> dict[str, Any]:
        """What tells it from other sketches, JSON-serialisable."""

    def __call__(self, name: str, gradient: Tensor) -> Tensor:
        """One parameter's part; [M, B, ...] -> [M, B, K]."""
        ...


class Projection:
    r"""A count sketch of the whole gradient: every coordinate gets a random sign and is added to one of K sums.

    With independent signs the inner product of two sketches is, in expectation, that of the gradients, with a variance
    of about (‖g‖²‖g'‖² + ⟨g, g'⟩²)/K, as for a dense random projection (Charikar et al., 2002; Weinberger et al.,
    2009), but it costs one pass over the gradient and needs no matrix. Coordinates are dealt out to the K sums in turn,
    from a random first one for each parameter.

    Args:
        width: K.
        seed: of the signs; equal seeds give projections that can be compared.
    """

    def __init__(self, width: int, seed: int):
        if width < 1:
            raise UserError(f"projection.width={width}: give a positive number")
        self.width = width
        self.seed = seed
        self._drawn: dict[str, tuple[Tensor, int]] = {}

    @property
    def about(self) -> dict[str, Any]:
        """Width and seed."""
        return {"width": self.width, "seed": self.seed}

    def __call__(self, name: str, gradient: Tensor) -> Tensor:
        """One parameter's part of the sketch; [M, B, ...] -> [M, B, K], at least float32."""
        if name not in self._drawn:
            rng = torch_rng(self.seed, "projection", name)
            shape = gradient.shape[2:]
            signs = torch.randint(0, 2, shape, generator=rng, dtype=torch.int8) * 2 - 1
            shift = int(torch.randint(0, self.width, (), generator=rng))
            self._drawn[name] = signs.to(gradient.device), shift
        signs, shift = self._drawn[name]
        signed = (gradient * signs).flatten(2)
        rows = -(-signed.shape[2] // self.width)
        padded = F.pad(signed, (0, rows * self.width - signed.shape[2]))
        wide = torch.promote_types(gradient.dtype, torch.float32)
        sums = padded.view(*signed.shape[:2], rows, self.width).sum(2, dtype=wide)
        return sums.roll(shift, dims=2)
