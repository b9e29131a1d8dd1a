"""Forward passes of the base model without adapters over rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import nn

from gradfiltering.data.batches import Batch, LengthBatches, batch_rows, make_batch_loader
from gradfiltering.data.examples import Examples
from gradfiltering.distributed.row_measurements import share_of_this_rank
from gradfiltering.ensembles.batch_settings import BatchSettings
from gradfiltering.models.language_model import LanguageModel
from gradfiltering.models.weights import hash_model
from gradfiltering.runs.cache import Cache
from gradfiltering.runs.memory import limit_freed_memory
from gradfiltering.runs.progress import track


class BaseModelWork(Protocol):
    """A base model, and all that is needed to run it over rows."""

    @property
    def base_model(self) -> LanguageModel:
        """Frozen model and tokenizer."""

    @property
    def batches(self) -> BatchSettings:
        """Division of work."""

    @property
    def cache(self) -> Cache:
        """Cache of this run and others."""

    @property
    def device(self) -> torch.device:
        """Device that computes."""

    @property
    def model_hash(self) -> str:
        """Digest of the base model: its weights and its configuration."""


@dataclass(frozen=True)
class TargetWork:
    """The base model of a target over rows; see `BaseModelWork`."""

    base_model: LanguageModel
    batches: BatchSettings
    cache: Cache
    device: torch.device

    @cached_property
    def model_hash(self) -> str:
        """Digest of the base model: its weights and its configuration."""
        return hash_model(self.base_model.model)


def prepare_base_model(context: BaseModelWork) -> nn.Module:
    """Return the base model on its device, without dropout.

    The target may share it. What is moved or made under `torch.inference_mode` can never be trained with, so passes
    over rows are under `torch.no_grad`.
    """
    return context.base_model.model.to(context.device).eval()


def forward_batches(context: BaseModelWork, examples: Examples) -> Iterator[Batch]:
    """Yield this rank's share of the rows in batches of like length, on the device; the ids stay on the CPU."""
    batches = LengthBatches(
        examples, context.batches.forward_tokens(context.device), context.base_model.pad_id, share=share_of_this_rank()
    )
    own_rows = sum(len(row_positions) for row_positions in batches.cuts)
    batch_loader = make_batch_loader(batches, context.batches.workers)
    for batch in track(batch_loader, "measuring rows without adapters", own_rows, amount_of=batch_rows):
        yield batch.to(context.device)
        limit_freed_memory()


def mean_over_tokens(hidden_states: torch.Tensor, token_mask: torch.Tensor) -> torch.Tensor:
    """Average over the tokens that are no padding; [B, T, D], [B, T] -> [B, D] float32."""
    weights = token_mask.float()
    return (hidden_states.float() * weights[:, :, None]).sum(1) / weights.sum(1, keepdim=True)
