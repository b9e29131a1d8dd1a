"""A small ensemble to train in tests, and the context that measures it."""

from dataclasses import replace
from functools import partial

import numpy as np

from gradfiltering.data.encoder import Encoder
from gradfiltering.ensembles.batch_settings import BatchSettings
from gradfiltering.ensembles.lora_ensemble import LoraEnsemble
from gradfiltering.ensembles.snapshots import SnapshotPair
from gradfiltering.evidence.context import EmbeddingSettings, MeasurementContext
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.gradients.projection import Projection
from gradfiltering.models.language_model import LanguageModel
from gradfiltering.models.lora import LoraSettings
from gradfiltering.models.objectives import ResponseNLL
from gradfiltering.runs.cache import Cache
from gradfiltering.runs.run_folder import RunFolder
from gradfiltering.synthetic.pretraining import new_model

SHAPE = {"architecture": "gpt2", "layers": 1, "heads": 2, "width": 16, "context": 96, "vocabulary": 300}
LOG_RTOL = 2e-7  # the log is float32
ROWS = 21  # not a multiple of the batch size


def small_ensemble(**changes) -> LoraEnsemble:
    lora = LoraSettings(rank=2, alpha=4, target_modules="all-linear", init_b_std=0.05)
    settings = LoraEnsemble(
        m=3, batch_size=4, lr=0.01, warmup_steps=3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, clip_norm=None,
        collect="snapshot", bucket_batches=2, trajectory_steps=2, checkpoint_minutes=10, lora=lora,
    )  # fmt: skip
    return replace(settings, **changes)


def ensemble_of_kind(kind, lora_settings=None, **changes):
    """An ensemble of another kind, with the same settings and those it has besides."""
    return kind(**{**vars(lora_settings or small_ensemble()), **changes})


def float64_base_model(tokenizer) -> LanguageModel:
    model = new_model(SHAPE, tokenizer, 0).double().eval().requires_grad_(False)
    model.set_attn_implementation("eager")
    return LanguageModel(model, tokenizer, "test", "test", 0.0, True)


def measurement_context(dataset, base_model, run_folder, cache_folder, build_trainer, **changes) -> MeasurementContext:
    """A context that measures all rows of a dataset, changed where a test needs it."""
    encoder = changes.pop("encoder", None) or Encoder(base_model.tokenizer, SHAPE["context"], Cache(cache_folder))
    usual = {
        "examples": encoder.encode(dataset), "heldout": encoder.encode_heldout(dataset), "encoder": encoder,
        "objective": ResponseNLL(), "ensemble": small_ensemble(),
        "build_engine": partial(FusedEngine, objective=ResponseNLL()), "snapshots": SnapshotPair(1, 2),
        "projection": Projection(24, 3), "embeddings": EmbeddingSettings(), "batches": BatchSettings(4096, 0),
        "cache": Cache(cache_folder), "run_folder": RunFolder(run_folder), "seed": 0, "build_trainer": build_trainer,
    }  # fmt: skip
    return MeasurementContext(base_model=base_model, dataset=dataset, **{**usual, **changes})


def assert_same_member(first_log, second_log, member, epochs=(1, 2)):
    for epoch in epochs:
        first, second = first_log.epoch(epoch), second_log.epoch(epoch)
        np.testing.assert_array_equal(first.example_ids, second.example_ids)
        np.testing.assert_allclose(first.grad_norm[member], second.grad_norm[member], rtol=LOG_RTOL)
        np.testing.assert_allclose(first.loss[member], second.loss[member], rtol=LOG_RTOL)


def assert_identical_logs(first_log, second_log, epochs):
    for epoch in epochs:
        for column in ("example_ids", "grad_norm", "loss"):
            np.testing.assert_array_equal(
                getattr(first_log.epoch(epoch), column), getattr(second_log.epoch(epoch), column)
            )
