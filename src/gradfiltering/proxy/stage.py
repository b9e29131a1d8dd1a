"""The proxy stage: from examples to gradient log, adapters and trajectory in the run folder."""

import ctypes
import sys
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
from gradfiltering.proxy.backbone import Loaded
from gradfiltering.proxy.devices import share
from gradfiltering.proxy.ensemble import EnsembleSettings, ProxyEnsemble
from gradfiltering.proxy.gradients import GradientEngine
from gradfiltering.proxy.log import EpochPair
from gradfiltering.proxy.lora import initial_adapters
from gradfiltering.proxy.objective import Objective
from gradfiltering.proxy.snapshot import EpochLogger, response_losses


@dataclass(frozen=True)
class BatchSettings:
    """How work is cut up; no result depends on it.

    Attributes:
        tokens: padded tokens computed at once, over members and examples.
        workers: processes that prepare batches.
    """

    tokens: int
    workers: int


@dataclass(frozen=True)
class ProxyResult:
    """What the proxy stage leaves besides its files.

    Attributes:
        members, epochs: what is in the gradient log.
        seconds: of training and logging.
        tokens: tokens put through forward and backward, over members, training and logging, padding not counted.
        update_ratio: epoch -> ‖ΔW‖/‖W‖ of each member.
        heldout_loss: epoch -> mean held-out loss over members and rows, nats per response token.
        flops: an estimate, 4 per backbone weight in a matrix product and token: forward, and backward through the
            activations. Attention scores and the adapters themselves are not counted.
    """

    members: int
    epochs: list[int]
    seconds: float
    tokens: int
    update_ratio: dict[int, list[float]]
    heldout_loss: dict[int, float]
    flops: int

    def summary(self) -> dict[str, Any]:
        """The part of `summary.json` about the proxy."""
        return {name: getattr(self, name) for name in ("members", "epochs", "seconds", "tokens")}


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
    module = ProxyEnsemble(engine(model=model), adapters, settings, settings.members)
    data = EnsembleData(
        rows.examples,
        rows.heldout,
        settings.members,
        settings.batch_size,
        settings.bucket_batches,
        max(1, batch.tokens // settings.m),
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
    tokens = passes * settings.m
    return ProxyResult(
        members=settings.m,
        epochs=sorted(logged),
        seconds=time.monotonic() - started,
        tokens=tokens,
        update_ratio=log.update_ratio,
        heldout_loss=log.heldout_loss,
        flops=4 * parameters * tokens,
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

    def losses(examples: Examples) -> np.ndarray:
        batches = loader(LengthBatches(examples, batch.tokens, backbone.pad_id, share=share()), batch.workers)
        found = response_losses(backbone.model, objective, batches, device)
        return np.asarray([found[example_id] for example_id in examples.example_ids.tolist()])

    return BareLosses(losses(rows.examples), None if rows.heldout is None else float(losses(rows.heldout).mean()))


def matmul_parameters(model: torch.nn.Module) -> int:
    """Weights that take part in matrix products: all matrices, with a tied embedding counted once for the logits."""
    matrices = {id(p): p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "wpe" not in name}
    embedding = model.get_input_embeddings().weight  # type: ignore[operator]
    head = model.get_output_embeddings().weight  # type: ignore[operator]
    return sum(matrices.values()) - (0 if embedding is head else embedding.numel())


def keep_freed_memory() -> None:
    """Tells glibc to keep large freed buffers instead of returning them to the system on each free.

    A training step frees and takes the same buffers again; without this, a CPU step spends much of its time in page
    faults. Does nothing where the C library has no such setting.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3
        library.mallopt(mmap_threshold, 1 << 30)
        library.mallopt(trim_threshold, (1 << 31) - 1)
