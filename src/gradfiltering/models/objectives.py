"""Objectives: one loss per example, from a language model and a batch."""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from gradfiltering.data.batches import IGNORED
from gradfiltering.models.causal_model import CausalModel


class Objective(Protocol):
    """Compute one loss per example; gradient engines and fine-tuning share it.

    An example may consist of several sequences (a preferred and a rejected answer, say): its
    gradient is then the gradient of one loss over all of them. Such an objective comes with a
    `Batch` of its own, whose tensors have further axes behind the examples, and calls the model
    once, on `tensor.flatten(0, 1)`, so that an example's sequences stay side by side. What does not
    depend on the adapters (log-probabilities of the base model) is one more tensor of the batch.

    It must be made of torch operations that `torch.func` can batch, and its `repr` must tell it
    from every other objective, since cached results are found by it.
    """

    def __call__(self, model: CausalModel, batch: Any) -> Tensor:
        """Compute the losses.

        Args:
            model: gives the loss of each next token.
            batch: B examples, without an axis of members.

        Returns:
            [B] losses.
        """


@dataclass(frozen=True)
class ResponseNLL:
    """Mean negative log-likelihood over the response tokens of each example, in nats per token.

    The mean is taken within an example, never over a padded batch (GradFiltering, arXiv 2601.13697,
    sec. 3), so an example's loss does not depend on the rest of the batch.
    """

    def __call__(self, model: CausalModel, batch: Any) -> Tensor:
        """Compute [B] losses of `batch.input_ids` and `batch.labels`, both [B, T]."""
        token_losses = model.token_losses(batch.input_ids, batch.labels)  # [B, T - 1]
        return token_losses.sum(1) / (batch.labels[:, 1:] != IGNORED).sum(1)
