"""A small ensemble to train in tests."""

from dataclasses import replace

import numpy as np

from gradfiltering.ensembles.lora_ensemble import EnsembleSettings
from gradfiltering.models.lora import LoraSettings

SHAPE = {"architecture": "gpt2", "layers": 1, "heads": 2, "width": 16, "context": 96, "vocabulary": 300}
LOG_RTOL = 2e-7  # the log is float32
ROWS = 21  # not a multiple of the batch size


def settings(**changes):
    lora = LoraSettings(rank=2, alpha=4, target_modules="all-linear", init_b_std=0.05)
    usual = EnsembleSettings(
        m=3, batch_size=4, lr=0.01, warmup_steps=3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, clip_norm=None,
        collect="snapshot", bucket_batches=2, trajectory_steps=2, checkpoint_minutes=10, lora=lora,
    )  # fmt: skip
    return replace(usual, **changes)


def assert_same(one, other, member, epochs=(1, 2)):
    for epoch in epochs:
        a, b = one.epoch(epoch), other.epoch(epoch)
        np.testing.assert_array_equal(a.example_ids, b.example_ids)
        np.testing.assert_allclose(a.grad_norm[member], b.grad_norm[member], rtol=LOG_RTOL)
        np.testing.assert_allclose(a.loss[member], b.loss[member], rtol=LOG_RTOL)


def other(kind, usual=None, **changes):
    """An ensemble of another kind, with the usual settings and what it has besides."""
    return kind(**{**vars(usual or settings()), **changes})
