"""LoRA fine-tuning of the target on a set of rows, with its convergence curve."""

import csv
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gradfiltering.data.batches import IGNORED, Batch, LengthBatches, collate, make_batch_loader
from gradfiltering.data.examples import Examples, Rows
from gradfiltering.distributed.process_group import once, share, sum_gradients, total, world_size
from gradfiltering.distributed.row_measurements import ALL_WORK, WorkShare
from gradfiltering.errors import UserError
from gradfiltering.evidence.passes import response_losses
from gradfiltering.finetuning.checkpoints import Checkpoint, Progress, TuningKeeper
from gradfiltering.models.causal_model import token_nll
from gradfiltering.models.language_model import LanguageModel
from gradfiltering.models.lora import LoraSettings, initial_adapters
from gradfiltering.models.objectives import ResponseNLL
from gradfiltering.models.weights import count_matmul_weights
from gradfiltering.runs.cache import Unfinished, atomic_path
from gradfiltering.seeding import derive_seed, numpy_rng

SCHEDULES = ("constant", "linear", "cosine")
CURVE = ("step", "examples_seen", "tokens_seen", "seconds", "train_loss", "heldout_loss")


@dataclass(frozen=True)
class FineTuningSettings:
    """How a target is fine-tuned.

    Attributes:
        epochs: passes over the rows it is given.
        batch_size: examples of one update.
        micro_batch_tokens: padded tokens computed at once; gradients accumulate over them, no result depends on it.
        lr: peak learning rate of AdamW.
        schedule: `constant`, `linear` or `cosine` decay to zero after the warm-up.
        warmup_share: share of all steps spent on a linear warm-up.
        weight_decay: of AdamW.
        clip_norm: gradients are scaled down to this L2 norm; null for no clipping.
        records: points of the convergence curve, at even distance in steps (start and end included).
        checkpoint_minutes: what training would go on from is kept this often.
        lora: the adapter.
    """

    epochs: int
    batch_size: int
    micro_batch_tokens: int
    lr: float
    schedule: str
    warmup_share: float
    weight_decay: float
    clip_norm: float | None
    records: int
    checkpoint_minutes: float
    lora: LoraSettings

    def __post_init__(self):
        for name in ("epochs", "batch_size", "micro_batch_tokens", "checkpoint_minutes"):
            if getattr(self, name) <= 0:
                raise UserError(f"target.tuning.{name}={getattr(self, name)}: give a positive number")
        if self.records < 2:
            raise UserError(f"target.tuning.records={self.records}: give at least 2 (start and end)")
        if self.schedule not in SCHEDULES:
            raise UserError(f"target.tuning.schedule={self.schedule} is unknown; choose one of: {', '.join(SCHEDULES)}")
        if not 0 <= self.warmup_share < 1:
            raise UserError(f"target.tuning.warmup_share={self.warmup_share}: give a share in [0, 1)")


@dataclass(frozen=True)
class FineTuningResult:
    """What fine-tuning left.

    Attributes:
        steps: updates.
        examples: rows trained on.
        tokens: tokens seen, padding not counted.
        seconds: of training, held-out measurements included.
        final_loss: mean training loss since the curve's last but one point, nats per response token.
        heldout_loss: at the end, nats per response token, None where nothing is held out.
        flops: an estimate, 4 per backbone weight in a matrix product and token trained on.
        reused: whether it was found in the store, having taken `seconds` when it was made.
    """

    steps: int
    examples: int
    tokens: int
    seconds: float
    final_loss: float
    heldout_loss: float | None
    flops: int
    reused: bool = False


class Updates(Dataset):
    """All updates of a training run: item k holds the micro-batches of update k, or of this process's share of it.

    Attributes:
        done: updates taken by a run that was interrupted; the items begin after them.
    """

    def __init__(
        self, examples: Examples, settings: FineTuningSettings, pad_id: int, seed: int, share: WorkShare = ALL_WORK
    ):
        self.done = 0
        self.examples = examples
        self.budget = settings.micro_batch_tokens
        self.pad_id = pad_id
        self.share = share
        self.rows: list[np.ndarray] = []
        for epoch in range(settings.epochs):
            order = numpy_rng(seed, "target rows", epoch).permutation(len(examples))
            self.rows += [
                order[start : start + settings.batch_size] for start in range(0, len(order), settings.batch_size)
            ]

    @property
    def total(self) -> int:
        """Updates of the whole training."""
        return len(self.rows)

    def __len__(self) -> int:
        return self.total - self.done

    def tokens(self, step: int) -> int:
        """Tokens of an update, padding not counted."""
        return int(self.examples.lengths[self.rows[step]].sum())

    def __getitem__(self, item: int) -> list[Batch]:
        cuts = LengthBatches(self.examples, self.budget, self.pad_id, self.share(self.rows[self.done + item])).cuts
        return [collate(self.examples.table[rows], self.pad_id, (len(rows),)) for rows in cuts]


class FineTuning(L.LightningModule):
    """Trains one LoRA adapter by the mean negative log-likelihood over the response tokens of each update.

    The model stays in evaluation mode: dropout is off, as everywhere in this project.

    Args:
        name: of the model being made, for the metrics.
        model: PEFT model; only its adapter is trained and saved.
        settings: optimiser and schedule.
        updates: what it will be trained on.
        heldout: batches to measure the held-out loss on, or None.
        left: by a run that was interrupted, or None.
    """

    def __init__(
        self,
        name: str,
        model: PeftModel,
        settings: FineTuningSettings,
        updates: Updates,
        heldout: DataLoader | None,
        left: Checkpoint | None = None,
    ):
        super().__init__()
        self.name = name
        self.model = model
        self.settings = settings
        self.updates = updates
        self.steps = updates.total
        self.heldout = heldout
        self.automatic_optimization = False  # an update's micro-batches are weighted by their tokens
        self.left = left
        self.progress = Progress() if left is None else left.progress
        updates.done = self.progress.steps
        self.due = set(np.linspace(0, self.steps, settings.records).round().astype(int).tolist())
        self.started = time.monotonic()

    def on_train_start(self) -> None:
        """Starts the clock and measures the untrained adapter."""
        self.started = time.monotonic() - self.progress.seconds
        if self.left is None:
            self._record(0)
        self.left = None

    def so_far(self) -> Progress:
        """How far training has come, the time up to now included."""
        return replace(self.progress, seconds=time.monotonic() - self.started)

    def training_step(self, micro_batches: list[Batch], index: int) -> None:
        """One update, by the mean over the supervised tokens of all processes."""
        optimizer: Any = self.optimizers()
        supervised = int(total(np.array(sum(int((batch.labels != IGNORED).sum()) for batch in micro_batches))))
        update_loss = 0.0
        # DDP would average once a micro-batch, of which processes have different numbers: the sum is ours to take.
        with self._unsynchronised():
            for batch in micro_batches:
                loss = self.token_losses(batch).sum() / supervised
                self.manual_backward(loss)
                update_loss += float(loss.detach())
        self.sum_gradients()
        update_loss = float(total(np.array(update_loss)))
        progress, step = self.progress, self.progress.steps
        progress.examples_seen += len(self.updates.rows[step])
        progress.tokens_seen += self.updates.tokens(step)
        if not math.isfinite(update_loss):
            rows = self.updates.examples.example_ids[self.updates.rows[step]].tolist()
            raise UserError(
                f"target {self.name}: the loss is {update_loss} at step {step}, rows {sorted(rows)[:10]}; "
                "lower target.tuning.lr or set target.tuning.clip_norm"
            )
        if self.settings.clip_norm is not None:
            self.clip_gradients(optimizer, self.settings.clip_norm, "norm")
        optimizer.step()
        optimizer.zero_grad()
        scheduler: Any = self.lr_schedulers()
        scheduler.step()
        progress.losses.append(update_loss)
        progress.steps += 1
        self.log(f"target/{self.name}/train_loss", update_loss, prog_bar=True)
        if progress.steps in self.due:
            self._record(progress.steps)

    def token_losses(self, batch: Batch) -> Tensor:
        """[B, T - 1] negative log-likelihood in nats, 0 where there is nothing to learn."""
        return token_nll(self.model(input_ids=batch.input_ids, use_cache=False).logits, batch.labels)

    def sum_gradients(self) -> None:
        """Gives every process the gradient of the whole update."""
        sum_gradients(list(self.trained.values()))

    @property
    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The adapter's parameters by name."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def _unsynchronised(self) -> Any:
        strategy: Any = self.trainer.strategy
        return strategy.block_backward_sync() if world_size() > 1 else nullcontext()

    def configure_optimizers(self) -> Any:
        """AdamW with the chosen schedule."""
        settings, done = self.settings, self.progress.steps
        optimizer = torch.optim.AdamW(self.trained.values(), lr=settings.lr, weight_decay=settings.weight_decay)
        if self.left is not None:
            self.left.restore(self.trained, optimizer)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.lr_factor(done + step))]

    def lr_factor(self, step: int) -> float:
        """The learning rate after `step` of `steps` updates, as a share of its peak."""
        warmup = round(self.settings.warmup_share * self.steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        share = (step - warmup) / max(1, self.steps - warmup)
        return {"constant": 1.0, "linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share))}[
            self.settings.schedule
        ]

    def heldout_loss(self) -> float | None:
        """Mean over held-out rows of the mean loss per response token, in nats."""
        if self.heldout is None:
            return None
        losses = response_losses(self.model, ResponseNLL(), self.heldout, self.device)
        return float(np.mean(list(losses.values())))

    def _record(self, step: int) -> None:
        heldout, progress = self.heldout_loss(), self.progress
        row = {
            "step": step,
            "examples_seen": progress.examples_seen,
            "tokens_seen": progress.tokens_seen,
            "seconds": round(time.monotonic() - self.started, 3),
            "train_loss": float(np.mean(progress.losses)) if progress.losses else None,
            "heldout_loss": heldout,
        }
        progress.losses = []
        progress.curve.append(row)
        if heldout is not None and self.logger is not None:
            self.logger.log_metrics({f"target/{self.name}/heldout_loss": heldout}, step=step)


def finetune(
    name: str,
    base_model: LanguageModel,
    rows: Rows,
    settings: FineTuningSettings,
    seed: int,
    trainer: Callable[..., L.Trainer],
    folder: Path,
    unfinished: Unfinished,
) -> FineTuningResult:
    """Fine-tunes one adapter on the examples of `rows` and writes `adapter/` and `curve.csv` to `folder`.

    Where a run was interrupted in it, training goes on from the last checkpoint, on one device bit for bit.

    Args:
        name: of the model being made (`candidate`, `full`, …).
        backbone: frozen target and its tokenizer.
        rows: examples to train on, and held-out ones to measure on.
        settings: how to train.
        seed: decides the adapter's start (the same for every model of a run) and the order of rows.
        trainer: builds a `lightning.Trainer` from keyword arguments.
        folder: `target/<name>` of the run folder.
        unfinished: where a checkpoint is kept until training is done and its result is in the store; the caller removes
            it then.
    """
    with fresh_adapter(base_model, settings, seed) as model:
        updates = Updates(rows.examples, settings, base_model.pad_id, seed, share())
        heldout = heldout_batches(rows, settings, base_model)
        module = FineTuning(name, model, settings, updates, heldout, once(Checkpoint.read, unfinished))
        keeper = TuningKeeper(unfinished, settings.checkpoint_minutes)
        trainer(max_epochs=1, callbacks=[keeper]).fit(module, make_batch_loader(updates, 0))
        return keep_adapter(module, len(rows.examples), base_model, folder)


@contextmanager
def fresh_adapter(base_model: LanguageModel, settings: FineTuningSettings, seed: int) -> Iterator[PeftModel]:
    """The backbone with the untrained adapter that every model of a run starts from; in the end as it came."""
    model = settings.lora.attach(base_model.model)
    try:
        start = initial_adapters(model, settings.lora, [0], derive_seed(seed, "target"))
        state = model.state_dict()
        for key, value in start.items():
            state[key].copy_(value[0])
        yield model
    finally:
        model.unload()


def heldout_batches(rows: Rows, settings: FineTuningSettings, base_model: LanguageModel) -> DataLoader | None:
    """This process's share of the held-out rows, None where nothing is held out."""
    if rows.heldout is None:
        return None
    return make_batch_loader(
        LengthBatches(rows.heldout, settings.micro_batch_tokens, base_model.pad_id, share=share()), 0
    )


def keep_adapter(module: FineTuning, examples: int, base_model: LanguageModel, folder: Path) -> FineTuningResult:
    """Writes `adapter/` and `curve.csv` of a model that was trained.

    Args:
        module: trained.
        examples: rows it was trained on.
        backbone: the target's.
        folder: where to.
    """
    with atomic_path(folder / "adapter") as part:
        module.model.save_pretrained(str(part), safe_serialization=True)
    progress = module.progress
    _write_curve(folder / "curve.csv", progress.curve)
    last = progress.curve[-1]
    return FineTuningResult(
        steps=progress.steps,
        examples=examples,
        tokens=progress.tokens_seen,
        seconds=float(last["seconds"] or 0.0),
        final_loss=float(last["train_loss"] or math.nan),
        heldout_loss=last["heldout_loss"],
        flops=4 * count_matmul_weights(base_model.model) * progress.tokens_seen,
    )


def _write_curve(path: Path, curve: Sequence[dict[str, Any]]) -> None:
    with atomic_path(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, CURVE)
        writer.writeheader()
        writer.writerows(curve)
