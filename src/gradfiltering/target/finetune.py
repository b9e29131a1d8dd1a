"""LoRA fine-tuning of the target on a set of rows, with its convergence curve."""

import csv
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gradfiltering.data.batches import IGNORED, WHOLE, Batch, LengthBatches, Share, collate, loader
from gradfiltering.data.examples import Examples, Rows
from gradfiltering.errors import UserError
from gradfiltering.proxy.backbone import Loaded
from gradfiltering.proxy.devices import share, sum_gradients, total, world_size
from gradfiltering.proxy.lora import LoraSettings, initial_adapters
from gradfiltering.proxy.objective import ResponseNLL, token_nll
from gradfiltering.proxy.snapshot import response_losses
from gradfiltering.proxy.stage import matmul_parameters
from gradfiltering.seeding import derive_seed, numpy_rng
from gradfiltering.store import atomic_path

SCHEDULES = ("constant", "linear", "cosine")
CURVE = ("step", "examples_seen", "tokens_seen", "seconds", "train_loss", "heldout_loss")


@dataclass(frozen=True)
class TuningSettings:
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
    lora: LoraSettings

    def __post_init__(self):
        for name in ("epochs", "batch_size", "micro_batch_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"target.tuning.{name}={getattr(self, name)}: give a positive number")
        if self.records < 2:
            raise UserError(f"target.tuning.records={self.records}: give at least 2 (start and end)")
        if self.schedule not in SCHEDULES:
            raise UserError(f"target.tuning.schedule={self.schedule} is unknown; choose one of: {', '.join(SCHEDULES)}")
        if not 0 <= self.warmup_share < 1:
            raise UserError(f"target.tuning.warmup_share={self.warmup_share}: give a share in [0, 1)")


@dataclass(frozen=True)
class TuningResult:
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
    """All updates of a training run: item k holds the micro-batches of update k, or of this process's share of it."""

    def __init__(self, examples: Examples, settings: TuningSettings, pad_id: int, seed: int, share: Share = WHOLE):
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

    def __len__(self) -> int:
        return len(self.rows)

    def tokens(self, step: int) -> int:
        """Tokens of an update, padding not counted."""
        return int(self.examples.lengths[self.rows[step]].sum())

    def __getitem__(self, step: int) -> list[Batch]:
        cuts = LengthBatches(self.examples, self.budget, self.pad_id, self.share(self.rows[step])).cuts
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
    """

    def __init__(
        self, name: str, model: PeftModel, settings: TuningSettings, updates: Updates, heldout: DataLoader | None
    ):
        super().__init__()
        self.name = name
        self.model = model
        self.settings = settings
        self.updates = updates
        self.steps = len(updates)
        self.heldout = heldout
        self.automatic_optimization = False  # an update's micro-batches are weighted by their tokens
        self.curve: list[dict[str, float | int | None]] = []
        self.due = set(np.linspace(0, self.steps, settings.records).round().astype(int).tolist())
        self.examples_seen = 0
        self.tokens_seen = 0
        self.started = time.monotonic()
        self._losses: list[float] = []

    def on_train_start(self) -> None:
        """Starts the clock and measures the untrained adapter."""
        self.started = time.monotonic()
        self._record(0)

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
        self.examples_seen += len(self.updates.rows[index])
        self.tokens_seen += self.updates.tokens(index)
        if not math.isfinite(update_loss):
            rows = self.updates.examples.example_ids[self.updates.rows[index]].tolist()
            raise UserError(
                f"target {self.name}: the loss is {update_loss} at step {index}, rows {sorted(rows)[:10]}; "
                "lower target.tuning.lr or set target.tuning.clip_norm"
            )
        if self.settings.clip_norm is not None:
            self.clip_gradients(optimizer, self.settings.clip_norm, "norm")
        optimizer.step()
        optimizer.zero_grad()
        scheduler: Any = self.lr_schedulers()
        scheduler.step()
        self._losses.append(update_loss)
        self.log(f"target/{self.name}/train_loss", update_loss, prog_bar=True)
        if index + 1 in self.due:
            self._record(index + 1)

    def token_losses(self, batch: Batch) -> Tensor:
        """[B, T - 1] negative log-likelihood in nats, 0 where there is nothing to learn."""
        return token_nll(self.model(input_ids=batch.input_ids, use_cache=False).logits, batch.labels)

    def sum_gradients(self) -> None:
        """Gives every process the gradient of the whole update."""
        sum_gradients(self.trained)

    @property
    def trained(self) -> list[torch.nn.Parameter]:
        """The adapter's parameters."""
        return [value for value in self.model.parameters() if value.requires_grad]

    def _unsynchronised(self) -> Any:
        strategy: Any = self.trainer.strategy
        return strategy.block_backward_sync() if world_size() > 1 else nullcontext()

    def configure_optimizers(self) -> Any:
        """AdamW with the chosen schedule."""
        optimizer = torch.optim.AdamW(self.trained, lr=self.settings.lr, weight_decay=self.settings.weight_decay)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, self.lr_factor)]

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
        heldout = self.heldout_loss()
        row = {
            "step": step,
            "examples_seen": self.examples_seen,
            "tokens_seen": self.tokens_seen,
            "seconds": round(time.monotonic() - self.started, 3),
            "train_loss": float(np.mean(self._losses)) if self._losses else None,
            "heldout_loss": heldout,
        }
        self._losses = []
        self.curve.append(row)
        if heldout is not None and self.logger is not None:
            self.logger.log_metrics({f"target/{self.name}/heldout_loss": heldout}, step=step)


def finetune(
    name: str,
    backbone: Loaded,
    rows: Rows,
    settings: TuningSettings,
    folder: Path,
    seed: int,
    trainer: Callable[..., L.Trainer],
) -> TuningResult:
    """Fine-tunes one adapter on the examples of `rows` and writes `adapter/` and `curve.csv` to `folder`.

    Args:
        name: of the model being made (`candidate`, `full`, …).
        backbone: frozen target and its tokenizer.
        rows: examples to train on, and held-out ones to measure on.
        settings: how to train.
        folder: `target/<name>` of the run folder.
        seed: decides the adapter's start (the same for every model of a run) and the order of rows.
        trainer: builds a `lightning.Trainer` from keyword arguments.
    """
    model = fresh_adapter(backbone, settings, seed)
    updates = Updates(rows.examples, settings, backbone.pad_id, seed, share())
    module = FineTuning(name, model, settings, updates, heldout_batches(rows, settings, backbone))
    trainer(max_epochs=1, callbacks=[]).fit(module, loader(updates, 0))
    return keep_adapter(module, len(rows.examples), backbone, folder)


def fresh_adapter(backbone: Loaded, settings: TuningSettings, seed: int) -> PeftModel:
    """The backbone with the untrained adapter that every model of a run starts from."""
    model = settings.lora.attach(backbone.model)
    start = initial_adapters(model, settings.lora, [0], derive_seed(seed, "target"))
    state = model.state_dict()
    for key, value in start.items():
        state[key].copy_(value[0])
    return model


def heldout_batches(rows: Rows, settings: TuningSettings, backbone: Loaded) -> DataLoader | None:
    """This process's share of the held-out rows, None where nothing is held out."""
    if rows.heldout is None:
        return None
    return loader(LengthBatches(rows.heldout, settings.micro_batch_tokens, backbone.pad_id, share=share()), 0)


def keep_adapter(module: FineTuning, examples: int, backbone: Loaded, folder: Path) -> TuningResult:
    """Writes `adapter/` and `curve.csv` of a model that was trained, and takes its adapter off the backbone.

    Args:
        module: trained.
        examples: rows it was trained on.
        backbone: the target's.
        folder: where to.
    """
    with atomic_path(folder / "adapter") as part:
        module.model.save_pretrained(str(part), safe_serialization=True)
    _write_curve(folder / "curve.csv", module.curve)
    module.model.unload()
    last = module.curve[-1]
    return TuningResult(
        steps=int(last["step"] or 0),
        examples=examples,
        tokens=module.tokens_seen,
        seconds=float(last["seconds"] or 0.0),
        final_loss=float(last["train_loss"] or math.nan),
        heldout_loss=last["heldout_loss"],
        flops=4 * matmul_parameters(backbone.model) * module.tokens_seen,
    )


def _write_curve(path: Path, curve: Sequence[dict[str, Any]]) -> None:
    with atomic_path(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, CURVE)
        writer.writeheader()
        writer.writerows(curve)
