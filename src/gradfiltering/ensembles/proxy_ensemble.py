"""The Lightning module that trains M LoRA adapters side by side on one frozen base model."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from gradfiltering.data.batches import Batch
from gradfiltering.distributed.process_group import gather_from_ranks, sum_over_ranks, world_size
from gradfiltering.ensembles.lora_ensemble import LoraEnsemble
from gradfiltering.ensembles.stack_state import StackState
from gradfiltering.ensembles.trajectory import TrajectoryRecorder, flatten_adapters
from gradfiltering.errors import UserError
from gradfiltering.gradients.adam_direction import MOMENT_NAMES
from gradfiltering.gradients.dropout import Dropout
from gradfiltering.gradients.engine import GradientEngine
from gradfiltering.models.lora import Adapters
from gradfiltering.runs.memory import return_freed_memory
from gradfiltering.shards.measurement_shards import MeasurementShards


class ProxyEnsemble(L.LightningModule):
    """Trains stacked adapters; a step's update is the mean of the per-example gradients the engine just computed.

    Only the adapters are parameters of this module, so no checkpoint ever holds the frozen base model.

    Args:
        engine: computes per-example gradients.
        initial_state: adapters, moments and steps that training starts from.
        settings: optimiser and logging.
        member_ids: members of the stack, in order.
        sketch_steps: a sketch of the adapters is recorded every so many steps; None for the settings' own.
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
        self.trajectory = TrajectoryRecorder(member_ids)
        self.sketch_steps = sketch_steps or settings.trajectory_steps
        self.recorder: MeasurementShards | None = None  # of an online log
        self.dropout: Dropout | None = None
        self._adapters_before_step: Tensor | None = None

    @property
    def named_stacks(self) -> list[tuple[str, Tensor]]:
        """Name and [M, ...] value of each parameter."""
        return list(zip(self.parameter_names, self.stacked, strict=True))

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
        if self.steps_taken == 0:
            flat_adapters = flatten_adapters(self.adapters)
            self.trajectory.record(0, flat_adapters, flat_adapters)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Make one update of every member from a [M, B, T] batch, of which this process has its share.

        Returns:
            A scalar whose gradient with respect to the adapters, averaged over the processes, is exactly the mean
            per-example gradient of the whole batch, so that Lightning's optimisation and DDP work as with any other
            loss.

        Raises:
            UserError: a loss is not finite; the message names step, members and rows.
        """
        local_rows = batch.example_id.shape[1]
        measurement = None
        problem: str | None = None
        local_sums = [0.0, 0.0]
        if local_rows:
            measurement = self.engine.measure(self.adapters, batch, with_mean_gradient=True, dropout=self.dropout)
            problem = self._describe_infinite_loss(measurement.loss, batch)
            local_sums = [
                stacked_value.mean().item() * local_rows for stacked_value in (measurement.loss, measurement.grad_norm)
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
        self.log("proxy/loss", loss_sum / total_rows)
        self.log("proxy/grad_norm", norm_sum / total_rows)
        if measurement is None:  # a small batch: nothing to add, but the average waits for every process
            return torch.stack([(stacked_value * 0).sum() for stacked_value in self.stacked]).sum()
        if self.recorder is not None:
            self.recorder.record(
                batch.example_id.cpu().numpy(), measurement.grad_norm.cpu().numpy(), measurement.loss.cpu().numpy()
            )
        mean_gradient = measurement.mean_gradient
        assert mean_gradient is not None
        rank_weight = local_rows * world_size() / total_rows  # DDP averages over processes, the mean is over rows
        products = [
            (stacked_value * mean_gradient[parameter_name]).sum() for parameter_name, stacked_value in self.named_stacks
        ]
        return torch.stack(products).sum() * rank_weight

    def configure_gradient_clipping(self, optimizer: Optimizer, *_: Any, **__: Any) -> None:
        """Clip each member's gradient by that member's own norm."""
        norm_limit = self.settings.clip_norm
        if norm_limit is None:
            return
        gradients = [stacked_value.grad for stacked_value in self.stacked if stacked_value.grad is not None]
        squared_norms = [gradient.flatten(1).square().sum(1) for gradient in gradients]
        member_norms = torch.stack(squared_norms).sum(0).sqrt()  # [M]
        factors = (norm_limit / (member_norms + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Copy the adapters before a step whose sketch will be recorded."""
        if (self.steps_taken + 1) % self.sketch_steps == 0:
            self._adapters_before_step = flatten_adapters(self.adapters).clone()

    def optimizer_step(self, *arguments: Any, **keywords: Any) -> None:
        """Take the step and record the sketch after it."""
        super().optimizer_step(*arguments, **keywords)
        if self._adapters_before_step is not None:
            self.trajectory.record(self.steps_taken + 1, self._adapters_before_step, flatten_adapters(self.adapters))
            self._adapters_before_step = None
        return_freed_memory()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build AdamW, element-wise and therefore independent between members, with a warm-up to a constant rate."""
        settings = self.settings
        optimizer = torch.optim.AdamW(
            self.parameters(),
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )
        earlier_steps = self.initial_state.steps
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: settings.warmup_factor(earlier_steps + step)
        )
        for moment_name, parameters in self.initial_state.moments.items():
            for parameter_name, stacked_value in self.named_stacks:
                optimizer.state[stacked_value][moment_name] = parameters[parameter_name].to(stacked_value)
                optimizer.state[stacked_value]["step"] = torch.tensor(float(earlier_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _describe_infinite_loss(self, losses: Tensor, batch: Batch) -> str | None:
        infinite = ~torch.isfinite(losses)  # [M, B]
        if not bool(infinite.any()):
            return None
        member_indices, columns = infinite.cpu().nonzero(as_tuple=True)
        members = sorted({self.member_ids[index] for index in member_indices.tolist()})
        row_ids = sorted(set(batch.example_id[member_indices, columns].tolist()))[:10]
        return (
            f"the loss is not finite at step {self.steps_taken} for members {members}, rows {row_ids}; "
            "lower the learning rate, clip the gradients, or look at those rows"
        )
