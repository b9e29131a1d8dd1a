"""The Lightning module that trains M LoRA adapters side by side on one frozen base model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from gradfiltering.data.batches import Batch
from gradfiltering.distributed.process_group import gather_from_ranks, sum_over_ranks, world_size
from gradfiltering.ensembles.known_gradient import attach_gradients
from gradfiltering.ensembles.lora_ensemble import LoraEnsemble
from gradfiltering.ensembles.stack_state import StackState
from gradfiltering.ensembles.trajectory import TrajectoryRecorder, flatten_adapters
from gradfiltering.errors import UserError
from gradfiltering.gradients.adam_direction import MOMENT_NAMES
from gradfiltering.gradients.dropout import Dropout
from gradfiltering.gradients.engine import GradientEngine
from gradfiltering.models.lora import Adapters
from gradfiltering.runs.memory import limit_freed_memory
from gradfiltering.shards.measurement_shards import MeasurementShards

STEPS_PER_FETCH = 16  # of a GPU: to ask for its numbers is to wait until all that it was asked to compute is done


@dataclass(frozen=True)
class StepMeasurement:
    """Losses and norms of a training step.

    Attributes:
        step: optimiser steps taken before it, those of earlier runs included.
        logged_step: the same, of this trainer alone.
        example_id: [M, B] int64, on the CPU; B is this process's share of the rows.
        loss, grad_norm: [M, B], on the device that computes until they are fetched.
    """

    step: int
    logged_step: int
    example_id: Tensor
    loss: Tensor
    grad_norm: Tensor


class ProxyEnsemble(L.LightningModule):
    """Trains stacked adapters; a step's update is the mean of the per-example gradients the engine just computed.

    Only the adapters are parameters of this module, so no checkpoint ever holds the frozen base model.

    Args:
        engine: computes per-example gradients.
        initial_state: adapters, moments and steps that training starts from.
        settings: optimiser and logging.
        member_ids: members of the stack, in order.
        sketch_steps: a sketch of the adapters is recorded every so many steps; None for the settings' own.

    Attributes:
        steps_per_fetch: losses and norms are fetched from the device, checked, recorded and logged once in so many
            steps. One process on a GPU takes `STEPS_PER_FETCH`, anything else 1. Whoever stores the state of training
            or what was recorded calls `fetch_measurements` before.
    """

    def __init__(
        self,
        engine: GradientEngine,
        initial_state: StackState,
        settings: LoraEnsemble,
        member_ids: Sequence[int],
        sketch_steps: int | None = None,
    ):
        super().__init__()
        self.engine = engine
        self.settings = settings
        self.initial_state = initial_state
        self.parameter_names = sorted(initial_state.adapters)
        self.stacked = nn.ParameterList(
            [nn.Parameter(initial_state.adapters[parameter_name]) for parameter_name in self.parameter_names]
        )
        self._stacks = list(self.stacked)  # which takes a millisecond, too long for each use in a step
        self.trajectory = TrajectoryRecorder(member_ids)
        self.sketch_steps = sketch_steps or settings.trajectory_steps
        self.recorder: MeasurementShards | None = None  # of an online log
        self.dropout: Dropout | None = None
        self.steps_per_fetch = 1
        self._unfetched: list[StepMeasurement] = []
        self._adapters_before_step: Tensor | None = None

    @property
    def named_stacks(self) -> list[tuple[str, Tensor]]:
        """Name and [M, ...] value of each parameter."""
        return list(zip(self.parameter_names, self._stacks, strict=True))

    @property
    def adapters(self) -> Adapters:
        """Parameter name -> [M, ...], without autograd history."""
        return {parameter_name: stacked_value.detach() for parameter_name, stacked_value in self.named_stacks}

    @property
    def member_ids(self) -> list[int]:
        """Members of the stack, in order."""
        return self.trajectory.member_ids

    @property
    def steps_taken(self) -> int:
        """Optimiser steps taken, those of earlier runs included."""
        return self.initial_state.steps + self.global_step

    @property
    def state(self) -> StackState:
        """State that training would go on from."""
        optimizer_state = self.trainer.optimizers[0].state
        moments = {
            moment_name: {
                parameter_name: optimizer_state[stacked_value][moment_name]
                for parameter_name, stacked_value in self.named_stacks
            }
            for moment_name in MOMENT_NAMES
        }
        return StackState(self.adapters, moments, self.steps_taken)

    def on_fit_start(self) -> None:
        """Move the base model to the adapters' device and record the start of training."""
        self.engine.to(self.device)
        if self.device.type == "cuda" and world_size() == 1:
            self.steps_per_fetch = STEPS_PER_FETCH
        if self.steps_taken == 0:
            flat_adapters = flatten_adapters(self.adapters)
            self.trajectory.record(0, flat_adapters, flat_adapters)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Make one update of every member from a [M, B, T] batch, of which this process has its share.

        Returns:
            The mean loss of this process's rows, 0 where it has none. As its gradient with respect to the adapters,
            averaged over the processes, counts the mean per-example gradient of the whole batch, so that Lightning's
            optimisation and DDP work as with any other loss.

        Raises:
            UserError: a loss is not finite, in this step or in one since the last fetch; the message names step,
                members and rows.
        """
        members, local_rows = batch.example_id.shape
        if local_rows:
            measurement = self.engine.measure(self.adapters, batch, with_mean_gradient=True, dropout=self.dropout)
            loss, grad_norm, mean_gradient = measurement.loss, measurement.grad_norm, measurement.mean_gradient
            assert mean_gradient is not None
        else:  # a small batch: nothing to add, but the average waits for every process
            loss = grad_norm = torch.empty(members, 0, device=self.device)
            mean_gradient = {name: torch.zeros_like(stacked_value) for name, stacked_value in self.adapters.items()}
        self._unfetched.append(
            StepMeasurement(self.steps_taken, self.global_step, batch.example_id.cpu(), loss, grad_norm)
        )
        total_rows = local_rows
        if len(self._unfetched) >= self.steps_per_fetch:
            total_rows = self.fetch_measurements()
        return attach_gradients(
            loss.mean() if local_rows else loss.sum(),
            self._stacks,
            [mean_gradient[parameter_name] for parameter_name in self.parameter_names],
            weight=local_rows * world_size() / total_rows,  # DDP averages over processes, the mean is over rows
        )

    def fetch_measurements(self) -> int:
        """Fetch what was measured since the last fetch; check, record and log it, one step after the other.

        Returns:
            Rows of the last of these steps over all processes; 0 where there is none.

        Raises:
            UserError: a loss is not finite; the message names the first such step, its members and rows.
        """
        waiting, self._unfetched = self._unfetched, []
        total_rows = 0
        for measured_step in _fetch(waiting):
            total_rows = self._take_in(measured_step)
        if waiting and self.steps_per_fetch > 1:
            for run_logger in self.loggers:
                run_logger.save()
        return total_rows

    def _take_in(self, measured_step: StepMeasurement) -> int:
        """Check, record and log a step that was fetched; return its rows over all processes."""
        local_rows = measured_step.example_id.shape[1]
        problem = self._describe_infinite_loss(measured_step)
        local_sums = [0.0, 0.0]
        if local_rows:
            local_sums = [
                stacked_value.mean().item() * local_rows
                for stacked_value in (measured_step.loss, measured_step.grad_norm)
            ]
        total_sums = sum_over_ranks(np.array([local_rows, problem is not None, *local_sums]))
        totals: list[float] = total_sums.tolist()
        total_rows, problem_count, loss_sum, norm_sum = totals
        if problem_count:
            raise UserError(
                next(message for message in gather_from_ranks(problem) if message),
                owner=type(self.settings),
                arguments=("lr", "clip_norm"),
            )
        self._log_step(
            measured_step.logged_step,
            {"proxy/loss": loss_sum / total_rows, "proxy/grad_norm": norm_sum / total_rows},
        )
        if self.recorder is not None and local_rows:
            self.recorder.record(
                measured_step.example_id.numpy(), measured_step.grad_norm.numpy(), measured_step.loss.numpy()
            )
        return int(total_rows)

    def _log_step(self, logged_step: int, metrics: dict[str, float]) -> None:
        """Log a step's means; one that is over is handed to the loggers as Lightning would have done in it."""
        if self.steps_per_fetch == 1:
            for metric_name, mean in metrics.items():
                self.log(metric_name, mean)
            return
        log_interval = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set without being declared
        if log_interval and (logged_step + 1) % log_interval == 0:
            for run_logger in self.loggers:
                run_logger.log_metrics({**metrics, "epoch": self.current_epoch}, step=logged_step)

    def configure_gradient_clipping(self, optimizer: Optimizer, *_: Any, **__: Any) -> None:
        """Clip each member's gradient by that member's own norm."""
        norm_limit = self.settings.clip_norm
        if norm_limit is None:
            return
        gradients = [stacked_value.grad for stacked_value in self._stacks if stacked_value.grad is not None]
        flat_gradients = torch.cat([gradient.flatten(1) for gradient in gradients], 1)  # [M, P]
        member_norms = flat_gradients.square().sum(1).sqrt()  # [M]
        factors = (norm_limit / (member_norms + 1e-6)).clamp(max=1.0)
        # A kernel for all of a member's parameters: there are far more of these than members.
        gradients_of_members = zip(*(gradient.unbind(0) for gradient in gradients), strict=True)
        for member_gradients, factor in zip(gradients_of_members, factors.unbind(0), strict=True):
            torch._foreach_mul_(member_gradients, factor)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Copy the adapters before a step whose sketch will be recorded."""
        if (self.steps_taken + 1) % self.sketch_steps == 0:
            self._adapters_before_step = flatten_adapters(self.adapters)

    def optimizer_step(self, *arguments: Any, **keywords: Any) -> None:
        """Take the step and record the sketch after it."""
        super().optimizer_step(*arguments, **keywords)
        if self._adapters_before_step is not None:
            self.trajectory.record(self.steps_taken + 1, self._adapters_before_step, flatten_adapters(self.adapters))
            self._adapters_before_step = None
        if self.device.type == "cpu":  # where a step's large buffers are in the heap
            limit_freed_memory()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build AdamW, element-wise and therefore independent between members, with a warm-up to a constant rate."""
        settings = self.settings
        is_fused = self._takes_fused_steps()
        optimizer = torch.optim.AdamW(
            self.parameters(),
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=is_fused or None,
        )
        earlier_steps = self.initial_state.steps
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: settings.warmup_factor(earlier_steps + step)
        )
        for moment_name, parameters in self.initial_state.moments.items():
            for parameter_name, stacked_value in self.named_stacks:
                optimizer.state[stacked_value][moment_name] = parameters[parameter_name].to(stacked_value)
                optimizer.state[stacked_value]["step"] = torch.tensor(
                    float(earlier_steps), device=stacked_value.device if is_fused else "cpu"
                )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _takes_fused_steps(self) -> bool:
        """Return True where AdamW computes all parameters in a kernel or a few."""
        if self.device.type != "cuda":
            return False
        # With a gradient scaler a fused step would unscale the gradients itself, after they were clipped.
        return getattr(self.trainer.precision_plugin, "scaler", None) is None

    def _describe_infinite_loss(self, measured_step: StepMeasurement) -> str | None:
        infinite = ~torch.isfinite(measured_step.loss)  # [M, B]
        if not bool(infinite.any()):
            return None
        member_indices, columns = infinite.nonzero(as_tuple=True)
        members = sorted({self.member_ids[index] for index in member_indices.tolist()})
        row_ids = sorted(set(measured_step.example_id[member_indices, columns].tolist()))[:10]
        return (
            f"the loss is not finite at step {measured_step.step} for members {members}, rows {row_ids}; "
            "lower the learning rate, clip the gradients, or look at those rows"
        )


def _fetch(measured_steps: Sequence[StepMeasurement]) -> list[StepMeasurement]:
    """Return the steps with their numbers on the CPU, sent in one piece."""
    if not measured_steps:
        return []
    tensors = [values for step in measured_steps for values in (step.loss, step.grad_norm)]
    sent = torch.cat([values.detach().flatten() for values in tensors]).cpu()
    pieces = sent.split([values.numel() for values in tensors])
    fetched = [piece.view(values.shape) for piece, values in zip(pieces, tensors, strict=True)]
    return [
        replace(step, loss=loss, grad_norm=grad_norm)
        for step, loss, grad_norm in zip(measured_steps, fetched[::2], fetched[1::2], strict=True)
    ]
