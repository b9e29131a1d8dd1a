"""Losses of the base model equal a computation one row at a time, and are computed once."""

import numpy as np
import torch

from gradfiltering.requests import BaseModelLosses

RTOL = 1e-4  # float32 forward passes in other batches


def test_losses_equal_one_row_at_a_time_and_are_cached(base_model, rows, measure, make_context, monkeypatch):
    losses = measure(BaseModelLosses(), base_model, rows, tokens=100)
    for row, loss in zip(make_context(base_model, rows).examples.table, losses.row_losses, strict=True):
        ids, (start, stop) = torch.tensor(row["input_ids"]), row["supervised"]
        with torch.no_grad():
            log_probabilities = base_model.model(ids[None]).logits[0].log_softmax(-1)
        expected = -np.mean([log_probabilities[p - 1, ids[p]].item() for p in range(start, stop)])
        np.testing.assert_allclose(loss, expected, rtol=RTOL)
    assert losses.heldout_loss is None and losses.row_losses.dtype == np.float64
    monkeypatch.setattr("gradfiltering.evidence.base_model_losses._compute_losses", None)
    again = measure(BaseModelLosses(), base_model, rows, tokens=100_000)
    np.testing.assert_array_equal(again.row_losses, losses.row_losses)
