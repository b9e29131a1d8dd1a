"""The proxy stage: from examples to gradient log, adapters and trajectory in the run folder."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from gradfiltering.data.batches import LengthBatches, loader
from gradfiltering.data.examples import Examples, Rows
from gradfiltering.data.module import EnsembleData
from gradfiltering.errors import UserError
from gradfiltering.proxy.backbone import Loaded
from gradfiltering.proxy.devices import gather, share
from gradfiltering.proxy.ensemble import EnsembleSettings, ProxyEnsemble
from gradfiltering.proxy.gradients import GradientEngine
from gradfiltering.proxy.log import EpochPair
from gradfiltering.proxy.lora import Adapters, initial_adapters
from gradfiltering.proxy.memory import AUTO, fitting_tokens
from gradfiltering.proxy.objective import Objective
from gradfiltering.proxy.snapshot import EpochLogger, response_losses

BARE_TOKENS = 4096  # padded tokens of one batch in a forward pass, where nothing else is said


@dataclass(frozen=True)
class BatchSettings:
    """How work is cut up; no result depends on it.

    Attributes:
        tokens: padded tokens computed at once, over members and examples; `auto` for as many as pay and fit.
        workers: processes that prepare batches.
    """

    tokens: int | str
    workers: int

    def __post_init__(self):
        if self.tokens != AUTO and (isinstance(self.tokens, str) or self.tokens < 1):
            raise UserError(f"batch.tokens={self.tokens}: give a positive number of tokens, or {AUTO}")


@dataclass(frozen=True)
class ProxyResult:
    """What the proxy stage leaves besides its files.

    Attributes:
        members, epochs: what is in the gradient log.
        seconds: of training and logging.
        tokens: tokens put through forward and backward, over members, training and logging, padding not counted.
        batch_tokens: padded tokens computed at once.
        update_ratio: epoch -> ‖ΔW‖/‖W‖ of each member.
        heldout_loss: epoch -> mean held-out loss over members and rows, nats per response token.
        flops: an estimate, 4 per backbone weight in a matrix product and token: forward, and backward through the
            activations. Attention scores and the adapters themselves are not counted.
    """

    members: int
    epochs: list[int]
    seconds: float
    tokens: int
    batch_tokens: int
    update_ratio: dict[int, list[float]]
    heldout_loss: dict[int, float]
    flops: int

    def summary(self) -> dict[str, Any]:
        """The part of `summary.json` about the proxy."""
        return {name: getattr(self, name) for name in ("members", "epochs", "seconds", "tokens", "batch_tokens")}


def log_gradients(
    backbone: Loaded,
    rows: Rows,
    settings: EnsembleSettings,
    engine: Callable[..., GradientEngine],
    epochs: EpochPair,
    batch: BatchSettings,
    run_dir: Path,
    seed: int,
    trainer: Callable[..., L.Trainer],
) -> ProxyResult:
    """Trains the ensemble to `epochs.late` and logs both epochs of the pair.

    Args:
        backbone: frozen model and tokenizer.
        rows: examples to train on and to score, and held-out rows to log only.
        settings: the ensemble.
        engine: builds a gradient engine around a `model`.
        epochs: the pair to log.
        batch: how work is cut up.
        run_dir: the run folder.
        seed: decides initial adapters and data order.
        trainer: builds a `lightning.Trainer` from keyword arguments.
    """
    started = time.monotonic()
    parameters = matmul_parameters(backbone.model)
    model = settings.lora.attach(backbone.model)
    adapters = initial_adapters(model, settings.lora, settings.members, seed)
    gradients = engine(model=model, chunk_tokens=BARE_TOKENS)
    module = ProxyEnsemble(gradients, adapters, settings, settings.members)
    device = trainer().strategy.root_device
    longest = int(rows.examples.lengths.max())
    tokens = gradients.chunk_tokens = _settle_tokens(batch.tokens, gradients, adapters, longest, device)
    data = EnsembleData(
        rows.examples,
        rows.heldout,
        settings.members,
        settings.batch_size,
        settings.bucket_batches,
        max(1, tokens // settings.m),
        backbone.pad_id,
        seed,
        batch.workers,
    )
    data.share = share()
    logged = {epochs.early, epochs.late}
    log = EpochLogger(run_dir, logged, model, settings.lora, settings.collect)
    trainer(max_epochs=epochs.late, callbacks=[log], reload_dataloaders_every_n_epochs=1).fit(module, datamodule=data)
    module.trajectory.write(run_dir / "trajectory.parquet")
    model.unload()  # leaves the backbone without LoRA layers, as it came
    snapshots = len(logged) if settings.collect == "snapshot" else int(0 in logged)
    heldout_tokens = rows.heldout.tokens if rows.heldout else 0
    passes = rows.examples.tokens * (epochs.late + snapshots) + heldout_tokens * len(logged)
    computed = passes * settings.m
    return ProxyResult(
        members=settings.m,
        epochs=sorted(logged),
        seconds=time.monotonic() - started,
        tokens=computed,
        batch_tokens=tokens,
        update_ratio=log.update_ratio,
        heldout_loss=log.heldout_loss,
        flops=4 * parameters * computed,
    )


@dataclass(frozen=True)
class BareLosses:
    """Losses under the backbone without adapters, in nats per response token.

    Attributes:
        pool: [N] float64, in the order of the examples.
        heldout: mean over held-out rows, None where nothing is held out.
    """

    pool: np.ndarray
    heldout: float | None


def measure_bare(
    backbone: Loaded, objective: Objective, rows: Rows, batch: BatchSettings, trainer: Callable[..., L.Trainer]
) -> BareLosses:
    """One forward pass over all rows without adapters."""
    device = trainer().strategy.root_device
    tokens = BARE_TOKENS if isinstance(batch.tokens, str) else batch.tokens

    def losses(examples: Examples) -> np.ndarray:
        batches = loader(LengthBatches(examples, tokens, backbone.pad_id, share=share()), batch.workers)
        found = response_losses(backbone.model, objective, batches, device)
        return np.asarray([found[example_id] for example_id in examples.example_ids.tolist()])

    return BareLosses(losses(rows.examples), None if rows.heldout is None else float(losses(rows.heldout).mean()))


def _settle_tokens(
    asked: int | str, gradients: GradientEngine, adapters: Adapters, longest: int, device: torch.device
) -> int:
    """What `batch.tokens` comes to: the same in every process, since it decides how a pass over all rows is cut."""
    if not isinstance(asked, str):
        return asked
    gradients.to(device)
    there = {name: value.to(device) for name, value in adapters.items()}
    return min(gather(fitting_tokens(gradients, there, longest, device)))


def matmul_parameters(model: torch.nn.Module) -> int:
    """Weights that take part in matrix products: all matrices, with a tied embedding counted once for the logits."""
    matrices = {id(p): p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "wpe" not in name}
    embedding = model.get_input_embeddings().weight  # type: ignore[operator]
    head = model.get_output_embeddings().weight  # type: ignore[operator]
    return sum(matrices.values()) - (0 if embedding is head else embedding.numel())
