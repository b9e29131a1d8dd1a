"""Objectives: one loss per example, from a language model and a batch."""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch.nn.functional as F
from torch import Tensor

from gradfiltering.data.batches import IGNORED, Batch, PreferenceBatch
from gradfiltering.models.causal_model import CausalModel
from gradfiltering.options import PositiveFloat, options


class Objective(Protocol):
    """Compute one loss per example; gradient engines and fine-tuning share it.

    An example may consist of several sequences (a preferred and a rejected answer, say): its
    gradient is then the gradient of one loss over all of them. Such an objective comes with a
    `Batch` of its own, whose tensors have further axes behind the examples, and calls the model
    once, on `tensor.flatten(0, 1)`, so that an example's sequences stay side by side. What does not
    depend on the adapters (log-probabilities of the base model) is one more tensor of the batch.

    It must be made of torch operations that `torch.func` can batch, and its `repr` must tell it
    from every other objective, since cached results are found by it.

    It may have `reads_pairs`, True where an example is a preference row, and `loss_unit`, its loss's unit in words.
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

    loss_unit: ClassVar[str] = "nats per response token"

    def __call__(self, model: CausalModel, batch: Batch) -> Tensor:
        """Compute [B] losses of `batch.input_ids` and `batch.labels`, both [B, T]."""
        token_losses = model.token_losses(batch.input_ids, batch.labels)  # [B, T - 1]
        return token_losses.sum(1) / (batch.labels[:, 1:] != IGNORED).sum(1)


@dataclass(frozen=True)
class SequenceNLL:
    """Negative log-likelihood of each example's response, the sum over its tokens, in nats."""

    loss_unit: ClassVar[str] = "nats per response"

    def __call__(self, model: CausalModel, batch: Batch) -> Tensor:
        """Compute [B] losses of `batch.input_ids` and `batch.labels`, both [B, T]."""
        return model.token_losses(batch.input_ids, batch.labels).sum(1)


@options
class DirectPreference:
    r"""The loss of direct preference optimisation (DPO; Rafailov et al., 2023, eq. 7), in nats per pair of answers.

    \(-\log\sigma(\beta[(\log\pi(y_w|x) - \log\pi_0(y_w|x)) - (\log\pi(y_l|x) - \log\pi_0(y_l|x))])\):
    log-probabilities are sums over the tokens of an answer, \(\pi_0\) is the base model without adapters. It is
    \(\log 2\) where the model is the base model, and below \(\log 2\) exactly where a pair is ranked right.

    Attributes:
        beta: strength of the tie to the base model.
    """

    beta: PositiveFloat = 0.1

    reads_pairs: ClassVar[bool] = True
    loss_unit: ClassVar[str] = "nats per pair of answers"

    def __call__(self, model: CausalModel, batch: PreferenceBatch) -> Tensor:
        """Compute [B] losses of [B, 2, T] tokens, whose base-model losses are [B, 2]."""
        sequences, labels = batch.input_ids.flatten(0, 1), batch.labels.flatten(0, 1)
        answer_nll = model.token_losses(sequences, labels).sum(1).view(-1, 2)
        log_ratios = batch.reference_nll - answer_nll  # log π - log π₀
        return -F.logsigmoid(self.beta * (log_ratios[:, 0] - log_ratios[:, 1]))


def reads_pairs(objective: Objective) -> bool:
    """Return True where an objective's examples are preference rows."""
    return bool(getattr(objective, "reads_pairs", False))


def loss_unit(objective: Objective) -> str:
    """Name the unit of an objective's loss."""
    return str(getattr(objective, "loss_unit", "nats"))
