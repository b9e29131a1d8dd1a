"""Objectives: from logits and labels to one loss per example."""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gradfiltering.data.batches import IGNORED


class Objective(Protocol):
    """One loss per example. It must be made of torch operations that `torch.func` can batch.

    An objective that also has a method `token_weights(labels) -> [B, T - 1]`, and whose loss is the sum of `token_nll`
    with these weights, saves an engine the logits of all positions whose weight is 0.
    """

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of each example.

        Args:
            logits: [B, T, V], the prediction at position t for token t + 1.
            labels: [B, T] int64, `IGNORED` where there is nothing to learn.

        Returns:
            [B] losses.
        """


@dataclass(frozen=True)
class ResponseNLL:
    """Mean negative log-likelihood over the response tokens of each example, in nats per token.

    The mean is taken within an example, never over a padded batch (GradFiltering, arXiv 2601.13697, sec. 3), so an
    example's loss does not depend on what it is batched with.
    """

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """[B, T, V], [B, T] -> [B]."""
        return token_nll(logits, labels).sum(1) / (labels[:, 1:] != IGNORED).sum(1)

    def token_weights(self, labels: Tensor) -> Tensor:
        """[B, T] -> [B, T - 1]: each example's response tokens weigh the same and 1 together."""
        response = labels[:, 1:] != IGNORED
        return response.double() / response.sum(1, keepdim=True)


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of each next token in nats, 0 where there is nothing to learn.

    Args:
        logits: [B, T, V].
        labels: [B, T] int64.

    Returns:
        [B, T - 1].
    """
    targets = labels[:, 1:]
    # In bf16 a sum over the vocabulary is too coarse.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    nll = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return nll.view(targets.shape)
