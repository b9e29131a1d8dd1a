"""Training of one LoRA adapter: updates over all processes, convergence curve, checkpoints."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace

import lightning as L
import numpy as np
import torch
from lightning.pytorch.strategies import DDPStrategy
from peft import PeftModel
from torch import Tensor

from gradfiltering.data.batches import Batch, LengthBatches
from gradfiltering.data.examples import Examples
from gradfiltering.distributed.process_group import gather_from_ranks, run_on_rank_zero, sum_gradients_over_ranks
from gradfiltering.distributed.row_measurements import RowMeasurements, share_of_this_rank
from gradfiltering.errors import UserError
from gradfiltering.finetuning.settings import FineTuningSettings
from gradfiltering.finetuning.sharded_layers import find_sharded_parameters
from gradfiltering.finetuning.update_schedule import RoundReport, UpdateSchedule
from gradfiltering.models.causal_model import SplitModel, split_model
from gradfiltering.models.objectives import Objective
from gradfiltering.runs.cache import ResumePoint
from gradfiltering.runs.checkpoint import Checkpoint
from gradfiltering.runs.memory import limit_freed_memory
from gradfiltering.runs.run_displays import ProgressBar

MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW
# Padded tokens that take as long as one more micro-batch: measured with SmolLM2-135M on a processor, guessed for GPUs.
BATCH_OVERHEAD = {"cpu": 256}
GPU_BATCH_OVERHEAD = 2048


@dataclass(frozen=True)
class CurvePoint:
    """One row of `curve.csv`.

    Attributes:
        step: updates taken.
        examples_seen, tokens_seen: in these updates; padding is not counted.
        seconds: since training began, interruptions not counted.
        train_loss: mean over the updates since the previous point, nats per response token; None at
            the start.
        heldout_loss: mean over held-out rows, nats per response token; None where nothing is held
            out. Of preference rows both losses are nats per pair.
        heldout_accuracy: of preference rows, the share of held-out pairs whose chosen answer became more probable
            against the base model than the rejected one did; None for other rows.
    """

    step: int
    examples_seen: int
    tokens_seen: int
    seconds: float
    train_loss: float | None
    heldout_loss: float | None
    heldout_accuracy: float | None = None


@dataclass
class TrainingProgress:
    """Training done so far.

    Attributes:
        updates_taken: in all.
        examples_seen, tokens_seen: in these updates.
        seconds: these updates took.
        recent_losses: loss of each update since the curve's last point.
        curve: points recorded so far.
        heldout_row_losses: of the held-out rows by their ids, ascending, at the last of these points.
    """

    updates_taken: int = 0
    examples_seen: int = 0
    tokens_seen: int = 0
    seconds: float = 0.0
    recent_losses: list[float] = field(default_factory=list)
    curve: list[CurvePoint] = field(default_factory=list)
    heldout_row_losses: list[float] = field(default_factory=list)


class FineTuningModule(L.LightningModule):
    """Trains one LoRA adapter; a step of the trainer is one round of the update schedule.

    An update follows the mean over the supervised tokens of its rows, whichever process computes
    them: each example's loss weighs as much as it has supervised tokens. Preference rows weigh alike.
    The model stays in evaluation mode, without dropout.

    Args:
        model_name: of the model in the run, for metrics and errors.
        model: PEFT model; only its adapter is trained.
        examples: rows that the schedule indexes.
        heldout: rows to measure the held-out loss on, or None.
        pad_id: token id for padding.
        schedule: decides the rows of each update.
        objective: loss of each example: a mean over its supervised tokens, or one of a pair of answers.
        settings: optimiser and learning rate.
        resume_point: where checkpoints are saved, or None.
        untrained_losses: holds the [N] held-out losses before training where another model of the run has measured
            them, and gets them where it is empty; None measures them anyway.
    """

    def __init__(
        self,
        model_name: str,
        model: PeftModel,
        examples: Examples,
        heldout: Examples | None,
        pad_id: int,
        schedule: UpdateSchedule,
        objective: Objective,
        settings: FineTuningSettings,
        resume_point: ResumePoint | None = None,
        untrained_losses: list[np.ndarray] | None = None,
    ):
        super().__init__()
        self.automatic_optimization = False  # examples are weighted across processes
        self.model_name = model_name
        self.model = model
        self.examples = examples
        self.heldout = heldout
        self.pad_id = pad_id
        self.schedule = schedule
        self.objective = objective
        self.settings = settings
        self.resume_point = resume_point
        self.untrained_losses = [] if untrained_losses is None else untrained_losses
        self.bar: ProgressBar | None = None  # of the rest of the schedule
        self.progress = TrainingProgress()
        self.loss_weights = np.ones(len(examples), dtype=np.int32) if examples.is_paired else examples.response_tokens
        self.curve_marks = np.linspace(0, schedule.length, settings.records).round()
        self.started_at = self.saved_at = time.monotonic()
        # DDP would broadcast what each process holds a part of.
        self._ddp_params_and_buffers_to_ignore = find_sharded_parameters(self)
        self._checkpoint: Checkpoint | None = None
        self._split_model: SplitModel | None = None

    @property
    def trained_parameters(self) -> dict[str, torch.nn.Parameter]:
        """The adapter's parameters by name."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Create AdamW, with the moments of the checkpoint to resume from."""
        parameters = self.trained_parameters
        optimizer = torch.optim.AdamW(parameters.values(), lr=self.settings.lr, weight_decay=self.settings.weight_decay)
        if self._checkpoint is not None:
            tensors = self._checkpoint.tensors
            for parameter_name, parameter in parameters.items():
                optimizer.state[parameter] = {
                    "step": torch.tensor(float(self.progress.updates_taken)),
                    **{moment: tensors[f"{moment}/{parameter_name}"].to(parameter) for moment in MOMENTS},
                }
            self._checkpoint = None
        return optimizer

    def on_train_start(self) -> None:
        """Start the clock and measure the untrained adapter."""
        self.saved_at = time.monotonic()
        self.started_at = self.saved_at - self.progress.seconds
        self._split_model = split_model(self.model)  # logits of prompts and padding are never computed
        if not self.progress.curve:
            if not self.untrained_losses and self.heldout is not None:
                self.untrained_losses.append(self._measure_heldout_losses(self.heldout))
            self._record_curve_point(self.untrained_losses[0] if self.untrained_losses else None)

    def training_step(self, round_number: int, batch_index: int) -> None:
        """Train on one round of the schedule and report what was observed."""
        schedule, progress_before = self.schedule, self.schedule.progress
        learning_rate = self.settings.learning_rate(progress_before, schedule.length)
        # Rank zero decides for all: machines that round differently would break ties differently.
        planned_updates = run_on_rank_zero(schedule.plan_round)
        example_losses, gradient_sum = [], None
        for row_indices in planned_updates:
            update_losses, update_gradient = self._take_update(row_indices, learning_rate)
            example_losses.append(update_losses)
            if update_gradient is not None:
                weighted_gradient = len(row_indices) * update_gradient
                gradient_sum = weighted_gradient if gradient_sum is None else gradient_sum + weighted_gradient
        round_rows = np.concatenate(planned_updates)
        mean_gradient = None if gradient_sum is None else (gradient_sum / len(round_rows)).cpu()
        report = RoundReport(
            row_indices=round_rows,
            example_losses=np.concatenate(example_losses),
            mean_gradient=mean_gradient,
            learning_rate=learning_rate,
            updates_taken=self.progress.updates_taken,
        )
        self._log_metrics(schedule.record_round(report))
        marks_before, marks_after = np.searchsorted(
            self.curve_marks, [progress_before, schedule.progress], side="right"
        )
        if marks_after > marks_before:
            self._record_curve_point(None if self.heldout is None else self._measure_heldout_losses(self.heldout))
        if self.bar is not None:
            self.bar.advance(schedule.progress - progress_before)
        self.trainer.should_stop = schedule.progress >= schedule.length

    def on_train_batch_end(self, *_: object) -> None:
        """Save a checkpoint when the last one is old enough."""
        due_at = self.saved_at + 60 * self.settings.checkpoint_minutes
        if self.resume_point is not None and time.monotonic() >= due_at:
            self._save_checkpoint(self.resume_point)
            self.saved_at = time.monotonic()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint; call it before fitting."""
        for parameter_name, parameter in self.trained_parameters.items():
            parameter.data.copy_(checkpoint.tensors[f"adapter/{parameter_name}"])
        schedule_tensors = {
            name.removeprefix("schedule/"): value
            for name, value in checkpoint.tensors.items()
            if name.startswith("schedule/")
        }
        self.schedule.restore_state(schedule_tensors, checkpoint.state["schedule"])
        self.progress = TrainingProgress(**checkpoint.state["progress"])
        self.progress.curve = [CurvePoint(**point) for point in checkpoint.state["progress"]["curve"]]
        self._checkpoint = checkpoint

    def _save_checkpoint(self, resume_point: ResumePoint) -> None:
        optimizer_state = self.trainer.optimizers[0].state
        schedule_tensors, schedule_state = self.schedule.export_state()
        tensors = {f"schedule/{name}": value for name, value in schedule_tensors.items()}
        for parameter_name, parameter in self.trained_parameters.items():
            tensors[f"adapter/{parameter_name}"] = parameter.detach()
            tensors.update({f"{moment}/{parameter_name}": optimizer_state[parameter][moment] for moment in MOMENTS})
        progress = replace(self.progress, seconds=time.monotonic() - self.started_at)
        resume_point.save(tensors, {"progress": asdict(progress), "schedule": schedule_state})

    def _take_update(self, row_indices: np.ndarray, learning_rate: float) -> tuple[np.ndarray, Tensor | None]:
        """Take one update.

        Returns:
            [n] float64 losses of its rows before the update, and [P] float32 gradient where the
            schedule observes it.
        """
        row_weights = self.loss_weights[row_indices]
        example_losses = self._accumulate_gradients(row_indices)
        update_loss = float(example_losses @ row_weights / row_weights.sum())
        if not math.isfinite(update_loss):
            first_ids = sorted(self.examples.example_ids[row_indices].tolist())[:10]
            raise UserError(
                f"target {self.model_name}: the loss is {update_loss} at step {self.progress.updates_taken}, rows "
                f"{first_ids}; lower the learning rate or clip the gradients",
                self.settings,
                ("lr", "clip_norm"),
            )
        gradient = self._flatten_gradients() if self.schedule.observes_gradients else None
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        if self.settings.clip_norm is not None:
            # Lightning declares the bare optimiser, and takes its own wrapper of it.
            self.clip_gradients(optimizer, self.settings.clip_norm, "norm")  # type: ignore[arg-type]
        optimizer.step()
        optimizer.zero_grad()
        limit_freed_memory()
        self.progress.updates_taken += 1
        self.progress.examples_seen += len(row_indices)
        self.progress.tokens_seen += int(self.examples.lengths[row_indices].sum())
        self.progress.recent_losses.append(update_loss)
        self.log(f"target/{self.model_name}/train_loss", update_loss)
        return example_losses, gradient

    def _accumulate_gradients(self, row_indices: np.ndarray) -> np.ndarray:
        """Give every rank the gradient of the whole update; return the [n] losses of its rows."""
        example_ids, update_weight = self.examples.example_ids[row_indices], self.loss_weights[row_indices].sum()
        measurements = RowMeasurements(np.sort(example_ids), ["loss"])
        assert self._split_model is not None, "made when training starts"
        idle_batches = self._make_idle_batches(self.examples, row_indices)
        with self._without_gradient_averaging():
            for batch in self._cut_batches(self.examples, row_indices):
                batch_losses = self.objective(self._split_model, batch.to(self.device))  # [B]
                batch_rows = np.searchsorted(self.examples.example_ids, batch.example_id.numpy())
                row_weights = torch.from_numpy(self.loss_weights[batch_rows]).to(batch_losses)
                self.manual_backward((batch_losses * row_weights).sum() / update_weight)
                measurements.record(batch.example_id.numpy(), loss=batch_losses.detach().cpu().numpy())
            for batch in idle_batches:
                self.manual_backward(0.0 * self.objective(self._split_model, batch.to(self.device)).sum())
        sum_gradients_over_ranks(list(self.trained_parameters.values()))
        sorted_losses = measurements.gather()["loss"].squeeze(0)  # of the one model
        losses: np.ndarray = sorted_losses[np.searchsorted(measurements.example_ids, example_ids)]
        return losses

    def _without_gradient_averaging(self) -> AbstractContextManager[None]:
        """Keep DDP from averaging once a micro-batch, of which processes have different numbers."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, DDPStrategy) else nullcontext()

    def _flatten_gradients(self) -> Tensor:
        """Return the [P] float32 gradient of all trained parameters."""
        gradients: Sequence[Tensor] = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for parameter in self.trained_parameters.values()
        ]
        return torch.cat([gradient.flatten() for gradient in gradients]).float()

    @torch.no_grad()
    def _measure_heldout_losses(self, heldout: Examples) -> np.ndarray:
        """Return the objective's [N] losses of the held-out rows."""
        assert self._split_model is not None, "made when training starts"
        measurements = RowMeasurements(heldout.example_ids, ["loss"])
        idle_batches = self._make_idle_batches(heldout, np.arange(len(heldout)))
        for batch in self._cut_batches(heldout, np.arange(len(heldout))):
            batch_losses = self.objective(self._split_model, batch.to(self.device))
            measurements.record(batch.example_id.numpy(), loss=batch_losses.float().cpu().numpy())
        for batch in idle_batches:
            self.objective(self._split_model, batch.to(self.device))
        return measurements.gather()["loss"].squeeze(0)  # of the one model

    def _cut_batches(self, examples: Examples, row_indices: np.ndarray) -> Iterator[Batch]:
        """Yield this rank's share of some rows in batches of like length, within the token budget."""
        batches = self._list_batches(examples, share_of_this_rank()(row_indices))
        return (batches[batch_index] for batch_index in range(len(batches)))

    def _make_idle_batches(self, examples: Examples, row_indices: np.ndarray) -> list[Batch]:
        """Return batches of one row, whose results nobody reads, for a rank with fewer batches than another has.

        Where layers are sharded, all ranks must go through them equally often; elsewhere there are none. Ranks agree on
        the number, so all of them call this before the first batch.
        """
        if not self.settings.shard_weights:
            return []
        own_count = len(self._list_batches(examples, share_of_this_rank()(row_indices)))
        idle_count = max(gather_from_ranks(own_count)) - own_count
        shortest_row = row_indices[np.argmin(examples.widths[row_indices])]
        return [self._list_batches(examples, np.array([shortest_row]))[0]] * idle_count

    def _list_batches(self, examples: Examples, row_indices: np.ndarray) -> LengthBatches:
        batch_overhead = BATCH_OVERHEAD.get(self.device.type, GPU_BATCH_OVERHEAD)
        return LengthBatches(
            examples, self.settings.micro_batch_tokens, self.pad_id, row_indices, batch_overhead=batch_overhead
        )

    def _record_curve_point(self, heldout_losses: np.ndarray | None) -> None:
        """Record a point of the curve, with the [N] losses of the held-out rows where there are any."""
        progress = self.progress
        if heldout_losses is not None:
            progress.heldout_row_losses = heldout_losses.tolist()
        heldout_loss = None if heldout_losses is None else float(heldout_losses.mean())
        heldout_accuracy = None
        if heldout_losses is not None and self.examples.is_paired:
            heldout_accuracy = float((heldout_losses < math.log(2)).mean())  # log 2 where the margin is zero
        progress.curve.append(
            CurvePoint(
                step=progress.updates_taken,
                examples_seen=progress.examples_seen,
                tokens_seen=progress.tokens_seen,
                seconds=round(time.monotonic() - self.started_at, 3),
                train_loss=float(np.mean(progress.recent_losses)) if progress.recent_losses else None,
                heldout_loss=heldout_loss,
                heldout_accuracy=heldout_accuracy,
            )
        )
        progress.recent_losses = []
        metrics = {"heldout_loss": heldout_loss, "heldout_accuracy": heldout_accuracy}
        self._log_metrics({name: value for name, value in metrics.items() if value is not None})

    def _log_metrics(self, metrics: Mapping[str, float]) -> None:
        if metrics:
            named_metrics = {f"target/{self.model_name}/{metric_name}": value for metric_name, value in metrics.items()}
            for run_logger in self.loggers:
                run_logger.log_metrics(named_metrics, step=self.progress.updates_taken)
