"""Training of a stack of members; every epoch of every member is kept as it ends."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pyarrow.parquet as pq
from peft import PeftModel

from gradfiltering.data.batches import Batch
from gradfiltering.data.examples import Examples
from gradfiltering.distributed.process_group import once, rank, world_size
from gradfiltering.ensembles.data_module import EnsembleData
from gradfiltering.ensembles.lora_ensemble import EnsembleSettings, ProxyEnsemble
from gradfiltering.ensembles.member_cache import MemberCache
from gradfiltering.ensembles.training_state import StackState
from gradfiltering.ensembles.trajectory import write_rows
from gradfiltering.gradients.engine import GradientEngine
from gradfiltering.runs.cache import Unfinished
from gradfiltering.runs.gradient_log import EpochLog, EpochRecorder


@dataclass
class Interrupted:
    """An epoch that was begun by a run that did not end it, or ended but not kept member by member.

    Attributes:
        state: of the stack.
        steps_done: steps of the epoch that were taken.
        trajectory: what was recorded in it.
        recorded: of an online log, what was measured in it.
        seconds: it took so far.
        ended: whether all of its steps were taken, and `recorded` is what all processes measured.
    """

    state: StackState
    steps_done: int
    trajectory: list[dict]
    recorded: dict[str, np.ndarray]
    seconds: float
    ended: bool

    def write(self, folder: Path) -> None:
        """Writes it into an existing folder."""
        self.state.write(folder / "state.safetensors")
        write_rows(self.trajectory, folder / "trajectory.parquet")
        recorded: dict[str, Any] = {
            **self.recorded,
            "steps_done": self.steps_done,
            "seconds": self.seconds,
            "ended": self.ended,
        }
        np.savez(folder / "recorded.npz", **recorded)

    @classmethod
    def read(cls, left: Unfinished) -> "Interrupted | None":
        """Reads what `write` wrote, None where nothing is."""
        folder = left.find()
        if folder is None:
            return None
        with np.load(folder / "recorded.npz") as kept:
            recorded = dict(kept)
        done, seconds, ended = (recorded.pop(name).item() for name in ("steps_done", "seconds", "ended"))
        trajectory = pq.read_table(folder / "trajectory.parquet").to_pylist()
        return cls(StackState.read(folder / "state.safetensors"), done, trajectory, recorded, seconds, ended)


def train_stack(
    members: Sequence[int],
    start: StackState,
    data: EnsembleData,
    last: int,
    settings: EnsembleSettings,
    engine: GradientEngine,
    kept: MemberCache,
    model: PeftModel,
    trainer: Callable[..., L.Trainer],
) -> None:
    """Trains members that have equally many epochs behind them to the end of epoch `last`.

    Args:
        members: their numbers, in the order of the stack.
        start: after `data.epochs_done` epochs.
        data: their batches.
        last: epoch.
        settings, engine, kept, model: of the ensemble.
        trainer: builds a `lightning.Trainer` from keyword arguments.
    """
    keeper = MemberKeeper(kept, model, settings)
    interrupted = once(Interrupted.read, keeper.unfinished(list(members), data.epochs_done + 1))
    if interrupted is not None and not once(keeper.kept_up_to, members, data.epochs_done + 1, interrupted.steps_done):
        interrupted = None  # a run that did not look within the epoch left it
    if interrupted is not None:
        start, data.steps_done = interrupted.state, interrupted.steps_done
    module = ProxyEnsemble(engine, start, settings, members)
    keeper.interrupted = interrupted
    epochs = last - data.epochs_done
    trainer(max_epochs=epochs, callbacks=[keeper], reload_dataloaders_every_n_epochs=1).fit(module, datamodule=data)


def finish_epochs(kept: MemberCache, model: PeftModel, examples: Examples) -> None:
    """Keeps the members of epochs that a killed run had ended; some of them it may have kept already.

    Else the others would be trained in a smaller stack, which agrees only up to rounding.

    Args:
        kept: where to.
        model: the PEFT model the adapters belong to.
        examples: that were trained on.
    """
    for unfinished in kept.unfinished():
        left = Interrupted.read(unfinished)
        if left is not None and left.ended:
            _keep_members(kept, model, unfinished.key["members"], unfinished.key["epoch"], left, examples)
            unfinished.remove()


def _keep_members(
    kept: MemberCache, model: PeftModel, members: list[int], epoch: int, ended: Interrupted, examples: Examples
) -> None:
    of = ended.recorded
    online = None
    if of:
        online = EpochLog(examples.example_ids, of["grad_norm"], of["loss"], examples.response_tokens)
    for position, member in enumerate(members):
        own = [row for row in ended.trajectory if row["member"] == member]
        log = None if online is None else (online, position)
        kept.keep(member, epoch, ended.state.of(position), model, own, log, ended.seconds / len(members))


class MemberKeeper(L.Callback):
    """Keeps every member at the end of every epoch and, now and then within one, what training would go on from.

    Args:
        kept: where to.
        model: the PEFT model the adapters belong to.
        settings: of the ensemble.
    """

    def __init__(self, kept: MemberCache, model: PeftModel, settings: EnsembleSettings):
        self.kept = kept
        self.model = model
        self.settings = settings
        self.interrupted: Interrupted | None = None
        self._began = self._saved = time.monotonic()

    def unfinished(self, members: list[int], epoch: int) -> Unfinished:
        """Where an epoch of these members that is not done yet lies."""
        return Unfinished(self.kept.cache, self.kept.unfinished_key(members, epoch))

    def kept_up_to(self, members: Sequence[int], epoch: int, steps: int) -> bool:
        """Whether what the log needs of the first steps of an epoch is there."""
        return all(self.kept.complete(member, epoch, steps) for member in members)

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Prepares dropout and the recorder of an online epoch, and takes up what an interrupted run left."""
        assert isinstance(module, ProxyEnsemble)
        data = _data(trainer)
        examples = data.examples
        module.dropout = self.settings.training_dropout(module.members, data.epoch, data.buckets.seed)
        if self.settings.collect == "online":
            module.recorder = EpochRecorder(examples.example_ids, examples.response_tokens, len(module.members))
        if self.interrupted is not None:
            module.trajectory.rows = self.interrupted.trajectory
            if module.recorder is not None:
                module.recorder.restore(self.interrupted.recorded)
        self._saved = time.monotonic()
        self._began = self._saved - (self.interrupted.seconds if self.interrupted is not None else 0.0)
        self.interrupted = None

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Keeps members that the log looks at within the epoch, and what there is of the epoch when it is time to."""
        assert isinstance(module, ProxyEnsemble)
        data = _data(trainer)
        steps_done = batch_idx + 1 + (data.steps_done if trainer.current_epoch == 0 else 0)
        for position, member in enumerate(module.members):
            if steps_done in self.kept.steps_within(member, data.epoch):
                seconds = (time.monotonic() - self._began) / len(module.members)
                state = module.state.of(position)
                self.kept.keep_within(member, data.epoch, steps_done, state, self.model, seconds)
        # With several processes each has but its share of an online log: then an epoch is begun anew.
        alone = rank() == 0 and (module.recorder is None or world_size() == 1)
        due = time.monotonic() - self._saved >= 60 * self.settings.checkpoint_minutes
        if alone and due and not trainer.is_last_batch:  # the whole epoch is kept right after its last
            recorded = module.recorder.state() if module.recorder is not None else {}
            spent = time.monotonic() - self._began
            left = Interrupted(module.state, steps_done, module.trajectory.rows, recorded, spent, ended=False)
            self.unfinished(module.members, data.epoch).write(left.write)
            self._saved = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Keeps the members after the epoch that just ended."""
        assert isinstance(module, ProxyEnsemble)
        data, members = _data(trainer), module.members
        log = module.recorder.finish() if module.recorder is not None else None
        recorded = {} if log is None else {"grad_norm": log.grad_norm, "loss": log.loss}
        spent = time.monotonic() - self._began
        ended = Interrupted(module.state, data.steps_per_epoch, module.trajectory.rows, recorded, spent, ended=True)
        unfinished = self.unfinished(members, data.epoch)
        if rank() == 0:
            unfinished.write(ended.write)
        _keep_members(self.kept, self.model, members, data.epoch, ended, data.examples)
        if rank() == 0:
            unfinished.remove()
        module.recorder = None
        module.trajectory.rows = []


def _data(trainer: L.Trainer) -> EnsembleData:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, EnsembleData)
    return data
