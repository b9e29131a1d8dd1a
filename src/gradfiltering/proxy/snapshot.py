"""Passes over all rows with the parameters frozen."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from rich.progress import track
from torch.utils.data import DataLoader

from gradfiltering.data.batches import Batch
from gradfiltering.data.examples import Examples
from gradfiltering.data.module import EnsembleData
from gradfiltering.proxy.devices import gather, rank
from gradfiltering.proxy.ensemble import ProxyEnsemble
from gradfiltering.proxy.gradients import GradientEngine
from gradfiltering.proxy.head import split_head
from gradfiltering.proxy.log import EpochLog, EpochRecorder, write_epoch
from gradfiltering.proxy.lora import Adapters, LoraSettings, export_adapter, update_ratio
from gradfiltering.proxy.objective import Objective


def measure_all(
    engine: GradientEngine, adapters: Adapters, examples: Examples, batches: DataLoader, title: str
) -> EpochLog:
    """Loss and gradient norm of every example under every member, parameters frozen, dropout off.

    Args:
        engine: measures.
        adapters: the members.
        examples: all of them.
        batches: this process's share of them.
        title: what the progress bar says.

    Returns:
        The epoch's log, [M, N].
    """
    device = next(iter(adapters.values())).device
    members = next(iter(adapters.values())).shape[0]
    recorder = EpochRecorder(examples.example_ids, examples.response_tokens, members)
    for batch in track(batches, description=title, transient=True, disable=rank() > 0):
        there = batch.to(device)
        measured = engine.measure(adapters, there, want_gradient=False)
        recorder.add(batch.example_id.numpy(), measured.grad_norm.cpu().numpy(), measured.loss.cpu().numpy())
    return recorder.finish()


@torch.inference_mode()
def response_losses(
    model: torch.nn.Module, objective: Objective, batches: Iterable[Batch], device: torch.device
) -> dict[int, float]:
    """Objective of each example under a plain model: example id -> loss in nats per response token.

    `batches` are this process's share; what comes back is of all processes.
    """
    model.to(device).eval()
    split = split_head(model)
    losses: dict[int, float] = {}
    for batch in batches:
        there = batch.to(device)
        loss = split.losses(objective, there.input_ids, there.labels)
        losses.update(zip(batch.example_id.tolist(), loss.float().cpu().tolist(), strict=True))
    return {example_id: loss for some in gather(losses) for example_id, loss in some.items()}


class EpochLogger(L.Callback):
    """Logs the chosen epochs of a training ensemble: gradient log, held-out log, adapters.

    Args:
        run_dir: the run folder.
        epochs: epochs to log; 0 is before training and always a snapshot.
        model: the PEFT model the adapters belong to.
        lora: the adapters' settings.
        collect: `snapshot` or `online`.
    """

    def __init__(self, run_dir: Path, epochs: set[int], model: Any, lora: LoraSettings, collect: str):
        self.run_dir = run_dir
        self.epochs = epochs
        self.model = model
        self.lora = lora
        self.collect = collect
        self.update_ratio: dict[int, list[float]] = {}
        self.heldout_loss: dict[int, float] = {}

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Logs epoch 0 where asked for."""
        if 0 in self.epochs:
            self._log(trainer, module, 0, online=None)

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Prepares to collect norms from the training steps of an online epoch."""
        assert isinstance(module, ProxyEnsemble)
        if self.collect == "online" and trainer.current_epoch + 1 in self.epochs:
            examples = _data(trainer).examples
            module.recorder = EpochRecorder(examples.example_ids, examples.response_tokens, module.settings.m)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Logs the epoch that just ended."""
        assert isinstance(module, ProxyEnsemble)
        epoch = trainer.current_epoch + 1
        if epoch in self.epochs:
            online = module.recorder.finish() if module.recorder is not None else None
            self._log(trainer, module, epoch, online)
        module.recorder = None

    def _log(self, trainer: L.Trainer, module: L.LightningModule, epoch: int, online: EpochLog | None) -> None:
        assert isinstance(module, ProxyEnsemble)
        data = _data(trainer)
        engine, adapters, members = module.engine, module.adapters, module.trajectory.members

        def snapshot(examples: Examples, what: str) -> EpochLog:
            return measure_all(engine, adapters, examples, data.pass_over(examples), f"epoch {epoch}: {what}")

        log = online or snapshot(data.examples, "gradients of all rows")
        write_epoch(self.run_dir / "gradient_log", log, members, epoch)
        if data.heldout is not None:
            heldout = snapshot(data.heldout, "held-out rows")
            write_epoch(self.run_dir / "gradient_log_heldout", heldout, members, epoch)
            self.heldout_loss[epoch] = float(np.mean(heldout.loss, dtype=np.float64))
        for position, member in enumerate(members):
            folder = self.run_dir / "adapters" / f"member={member:02d}" / f"epoch={epoch:02d}"
            export_adapter(self.model, adapters, position, folder)
        self.update_ratio[epoch] = update_ratio(self.model, adapters, self.lora)


def _data(trainer: L.Trainer) -> EnsembleData:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, EnsembleData)
    return data
