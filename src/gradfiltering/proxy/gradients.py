"""What a gradient engine does, and how its work is cut into chunks."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gradfiltering.data.batches import Batch
from gradfiltering.proxy.lora import Adapters


@dataclass
class Measurement:
    """Per-example statistics of one batch under M members.

    Attributes:
        loss: [M, B] objective of each example.
        grad_norm: [M, B] L2 norm of the example's gradient over all of the member's adapter parameters
            (GradFiltering, arXiv 2601.13697, eq. 1).
        mean_gradient: parameter name -> [M, ...], mean over the B examples; None unless asked for.
    """

    loss: Tensor
    grad_norm: Tensor
    mean_gradient: Adapters | None


class GradientEngine(Protocol):
    """Computes per-example gradients of stacked adapters on one frozen backbone."""

    def measure(self, adapters: Adapters, batch: Batch, want_gradient: bool) -> Measurement:
        """Measures a batch.

        Args:
            adapters: parameter name -> [M, ...].
            batch: [M, B, T], or [B, T] for the same examples under every member.
            want_gradient: also return the mean gradient, the one a training step uses.
        """

    def to(self, device: torch.device) -> None:
        """Moves the frozen backbone."""
