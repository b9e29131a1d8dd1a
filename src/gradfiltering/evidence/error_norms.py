"""EL2N: error norms under the base model (Paul et al., NeurIPS 2021), over response tokens."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gradfiltering.data.batches import IGNORED, Batch
from gradfiltering.distributed.row_measurements import RowMeasurements
from gradfiltering.evidence.base_model_passes import forward_batches, prepare_base_model
from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.evidence.measurers import Measurer
from gradfiltering.models.causal_model import CHUNK_BYTES, SplitModel, split_model
from gradfiltering.requests import ErrorNorms


class ErrorNormMeasurer(Measurer[ErrorNorms]):
    """Measures the mean error norm of each row's response tokens."""

    request_type = ErrorNorms

    @torch.no_grad()
    def measure(self, request: ErrorNorms, context: MeasurementContext) -> np.ndarray:
        """Measure [N] float64."""
        causal_model = split_model(prepare_base_model(context))
        row_recorder = RowMeasurements(context.examples.example_ids, ["error_norm"])
        for batch in forward_batches(context, context.examples.chosen_sequences()):
            response_mask = batch.labels[:, 1:] != IGNORED  # [B, T - 1]
            norm_sums = torch.zeros(len(response_mask), dtype=torch.float64, device=context.device)
            for row_indices, target_ids, logits in response_logits(causal_model, batch):
                norm_sums.index_add_(0, row_indices, error_norms(logits, target_ids).double())
            mean_norms = norm_sums / response_mask.sum(1)
            row_recorder.record(batch.example_id.numpy(), error_norm=mean_norms.cpu().numpy())
        return row_recorder.gather()["error_norm"].squeeze(0)  # of the one model


def response_logits(causal_model: SplitModel, batch: Batch) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Compute logits at the positions that predict a response token, a slice of them at a time.

    Yields:
        [K] row of the batch, [K] target, [K, V] logits in at least float32.
    """
    row_indices, positions = (batch.labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    target_ids = batch.labels[row_indices, positions + 1]
    head_weight, head_bias = causal_model.head_weight, causal_model.head_bias
    if head_weight is None:
        outputs = causal_model.model(input_ids=batch.input_ids, use_cache=False).logits[row_indices, positions]
        vocabulary_size = outputs.shape[1]
    else:
        body_output = causal_model.body(input_ids=batch.input_ids, use_cache=False)
        outputs = body_output.last_hidden_state[row_indices, positions]
        vocabulary_size = len(head_weight)
    slice_size = max(1, CHUNK_BYTES // (4 * vocabulary_size))
    for start in range(0, len(row_indices), slice_size):
        positions_slice = slice(start, start + slice_size)
        slice_outputs = outputs[positions_slice]
        logits = slice_outputs if head_weight is None else F.linear(slice_outputs, head_weight, head_bias)
        wide_logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        yield row_indices[positions_slice], target_ids[positions_slice], wide_logits


def error_norms(logits: Tensor, target_ids: Tensor) -> Tensor:
    """Compute ‖softmax(logits) − onehot(target)‖₂; [K, V], [K] -> [K]."""
    errors = torch.softmax(logits, dim=-1)
    errors.scatter_add_(1, target_ids[:, None], errors.new_full((len(target_ids), 1), -1.0))
    norms: Tensor = torch.linalg.vector_norm(errors, dim=-1)
    return norms
