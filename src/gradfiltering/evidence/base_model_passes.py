"""Forward passes of the base model without adapters over rows."""

from collections.abc import Iterator

import torch
from torch import nn

from gradfiltering.data.batches import Batch, LengthBatches, batch_rows, make_batch_loader
from gradfiltering.data.examples import Examples
from gradfiltering.distributed.row_measurements import share_of_this_rank
from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.runs.progress import track


def prepare_base_model(context: MeasurementContext) -> nn.Module:
    """Return the base model on its device, without dropout."""
    return context.base_model.model.to(context.device).eval()


def forward_batches(context: MeasurementContext, examples: Examples) -> Iterator[Batch]:
    """Yield this rank's share of the rows in batches of like length, on the device; the ids stay on the CPU."""
    batches = LengthBatches(
        examples, context.batches.forward_tokens, context.base_model.pad_id, share=share_of_this_rank()
    )
    own_rows = sum(len(row_positions) for row_positions in batches.cuts)
    batch_loader = make_batch_loader(batches, context.batches.workers)
    for batch in track(batch_loader, "measuring rows without adapters", own_rows, amount_of=batch_rows):
        yield batch.to(context.device)


def mean_over_tokens(hidden_states: torch.Tensor, token_mask: torch.Tensor) -> torch.Tensor:
    """Average over the tokens that are no padding; [B, T, D], [B, T] -> [B, D] float32."""
    weights = token_mask.float()
    return (hidden_states.float() * weights[:, :, None]).sum(1) / weights.sum(1, keepdim=True)
