"""The proxy ensemble: M LoRA adapters trained side by side on one frozen backbone."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from gradfiltering.data.batches import Batch
from gradfiltering.distributed.process_group import gather, total, world_size
from gradfiltering.ensembles.training_state import MOMENTS, StackState
from gradfiltering.ensembles.trajectory import Trajectory, flatten
from gradfiltering.errors import UserError
from gradfiltering.gradients.dropout import Dropout
from gradfiltering.gradients.engine import GradientEngine
from gradfiltering.models.lora import Adapters, LoraSettings
from gradfiltering.runs.gradient_log import EpochRecorder

COLLECT = ("snapshot", "online")
AUTO = "auto"


@dataclass(frozen=True)
class Reading:
    """What a member of the gradient log is measured with, at some epoch.

    Attributes:
        member: the trained member.
        step: how many of the epoch's steps it had taken; None at the epoch's end.
        dropout: probability and number of the pass; None for none.
    """

    member: int
    step: int | None = None
    dropout: tuple[float, int] | None = None


@dataclass(frozen=True)
class EnsembleSettings:
    """How the ensemble is trained and logged: M adapters, each with a start and an order of rows of its own.

    Other ensembles derive from it and say which members are trained, on what, and how each member of the log is read
    off them; the rest of the pipeline does not know them apart.

    Attributes:
        m: number of members M, or `auto` for as many as make the choice stable (`proxy.adaptive`).
        batch_size: examples of one update of each member.
        lr: learning rate of AdamW, constant after warm-up, so that it does not depend on how many epochs are asked for.
        warmup_steps: steps of linear warm-up.
        betas, eps, weight_decay: of AdamW.
        clip_norm: each member's mean gradient is scaled down to this L2 norm; null for no clipping.
        collect: `snapshot` measures all rows with the parameters frozen after the epoch (the definition);
            `online` keeps the norms of the epoch's own training steps.
        bucket_batches: batches in a length bucket.
        trajectory_steps: a sketch of the adapters is recorded every so many steps.
        checkpoint_minutes: within an epoch, what training would go on from is kept this often.
        lora: shape and start of each adapter.
    """

    m: int | str
    batch_size: int
    lr: float
    warmup_steps: int
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    clip_norm: float | None
    collect: str
    bucket_batches: int
    trajectory_steps: int
    checkpoint_minutes: float
    lora: LoraSettings

    resampled: ClassVar[bool] = False  # each member trains on a bootstrap sample of the rows

    def __post_init__(self):
        if isinstance(self.m, str) and self.m != AUTO:
            raise UserError(f"ensemble.m={self.m}: give a number of members, or {AUTO}")
        members = ("m",) if self.m != AUTO else ()
        for name in (*members, "batch_size", "bucket_batches", "trajectory_steps", "checkpoint_minutes"):
            if getattr(self, name) <= 0:
                raise UserError(f"ensemble.{name}={getattr(self, name)}: give a positive number")
        if self.collect not in COLLECT:
            raise UserError(f"ensemble.collect={self.collect} is unknown; choose one of: {', '.join(COLLECT)}")
        if self.lr < 0 or self.warmup_steps < 0:
            raise UserError(
                f"ensemble.lr={self.lr}, ensemble.warmup_steps={self.warmup_steps}: neither may be negative"
            )

    @property
    def members(self) -> range:
        """The numbers of the log's members, from 0."""
        return range(int(self.m))

    def rate_share(self, step: int) -> float:
        """What share of `lr` the update after `step` others is made with."""
        return min(1.0, (step + 1) / max(1, self.warmup_steps))

    @property
    def trained_members(self) -> range:
        """The members that must be trained."""
        return self.members

    def reading(self, member: int, epoch: int, steps: int) -> Reading:
        """How a member of the log is measured.

        Args:
            member: its number.
            epoch: after which, or within which.
            steps: optimiser steps of an epoch.
        """
        return Reading(member)

    def trained_by(self) -> dict[str, Any]:
        """The settings by which trained members are told apart in the store."""
        return asdict(self)

    def training_dropout(self, members: Sequence[int], epoch: int, seed: int) -> Dropout | None:
        """What is dropped in an epoch's training steps, None for nothing."""
        return None

    def steps_per_epoch(self, rows: int) -> int:
        """Optimiser steps of one epoch over so many rows."""
        return -(-rows // self.batch_size)

    def refuse_online(self, why: str) -> None:
        """Refuses norms of the training steps, for an ensemble that cannot do with them."""
        if self.collect == "online":
            raise UserError(f"ensemble.collect=online: {why}; set ensemble.collect=snapshot, or choose ensemble=lora")


class ProxyEnsemble(L.LightningModule):
    """Trains stacked adapters; a step's update is the mean of the per-example gradients the engine just computed.

    Only the adapters are parameters of this module, so no checkpoint ever holds the frozen backbone.

    Args:
        engine: computes per-example gradients.
        state: what training starts from.
        settings: optimiser and logging.
        members: the members' numbers, in the order of the stack.
    """

    def __init__(self, engine: GradientEngine, state: StackState, settings: EnsembleSettings, members: Sequence[int]):
        super().__init__()
        self.engine = engine
        self.settings = settings
        self.names = sorted(state.adapters)
        self.stacked = nn.ParameterList([nn.Parameter(state.adapters[name]) for name in self.names])
        self.start = state
        self.trajectory = Trajectory(list(members))
        self.recorder: EpochRecorder | None = None
        self.dropout: Dropout | None = None
        self._before: Tensor | None = None

    @property
    def adapters(self) -> Adapters:
        """Parameter name -> [M, ...], without autograd history."""
        return {name: value.detach() for name, value in zip(self.names, self.stacked, strict=True)}

    @property
    def members(self) -> list[int]:
        """The members' numbers, in the order of the stack."""
        return self.trajectory.members

    @property
    def steps(self) -> int:
        """Optimiser steps taken, those of earlier runs included."""
        return self.start.steps + self.global_step

    @property
    def state(self) -> StackState:
        """What training would go on from."""
        kept = self.trainer.optimizers[0].state
        moments = {
            kind: {name: kept[value][kind] for name, value in zip(self.names, self.stacked, strict=True)}
            for kind in MOMENTS
        }
        return StackState(self.adapters, moments, self.steps)

    def on_fit_start(self) -> None:
        """Brings the backbone to the adapters' device and records where training starts."""
        self.engine.to(self.device)
        if self.steps == 0:
            start = flatten(self.adapters)
            self.trajectory.record(0, start, start)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """One update of every member from a [M, B, T] batch, of which this process has its share.

        Returns:
            A scalar whose gradient with respect to the adapters, averaged over the processes, is exactly the mean
            per-example gradient of the whole batch, so that Lightning's optimisation and DDP work as with any other
            loss.

        Raises:
            UserError: a loss is not finite; the message names step, members and rows.
        """
        mine = batch.example_id.shape[1]
        measured = self.engine.measure(self.adapters, batch, True, dropout=self.dropout) if mine else None
        problem = self._problem(measured.loss, batch) if measured else None
        sums = [measured.loss.mean().item() * mine, measured.grad_norm.mean().item() * mine] if measured else [0.0, 0.0]
        rows, problems, loss, norm = total(np.array([mine, problem is not None, *sums])).tolist()
        if problems:
            raise UserError(next(found for found in gather(problem) if found))
        if self.recorder is not None and measured:
            self.recorder.add(
                batch.example_id.cpu().numpy(), measured.grad_norm.cpu().numpy(), measured.loss.cpu().numpy()
            )
        self.log("proxy/loss", loss / rows, prog_bar=True)
        self.log("proxy/grad_norm", norm / rows)
        pairs = zip(self.names, self.stacked, strict=True)
        if measured is None:  # a small batch: nothing to add, but the average waits for every process
            return torch.stack([(value * 0).sum() for value in self.stacked]).sum()
        gradient = measured.mean_gradient
        assert gradient is not None
        share = mine * world_size() / rows  # DDP averages over processes, the mean is over rows
        return torch.stack([(value * gradient[name]).sum() for name, value in pairs]).sum() * share

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clips each member's gradient by that member's own norm."""
        limit = self.settings.clip_norm
        if limit is None:
            return
        squares = [value.grad.flatten(1).square().sum(1) for value in self.stacked if value.grad is not None]
        norm = torch.stack(squares).sum(0).sqrt()  # [M]
        factor = (limit / (norm + 1e-6)).clamp(max=1.0)
        for value in self.stacked:
            if value.grad is not None:
                value.grad.mul_(factor.view(-1, *[1] * (value.dim() - 1)))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Keeps the adapters of a step whose sketch will be recorded."""
        if (self.steps + 1) % self.settings.trajectory_steps == 0:
            self._before = flatten(self.adapters).clone()

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Takes the step and records the sketch after it."""
        super().optimizer_step(*arguments, **options)
        if self._before is not None:
            self.trajectory.record(self.steps + 1, self._before, flatten(self.adapters))
            self._before = None

    def configure_optimizers(self) -> Any:
        """AdamW, element-wise and therefore independent between members, with a warm-up to a constant rate."""
        settings = self.settings
        optimizer = torch.optim.AdamW(
            self.parameters(),
            lr=settings.lr,
            betas=(settings.betas[0], settings.betas[1]),
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: settings.rate_share(self.start.steps + step)
        )
        for kind, of in self.start.moments.items():
            for name, value in zip(self.names, self.stacked, strict=True):
                optimizer.state[value][kind] = of[name].to(value)
                optimizer.state[value]["step"] = torch.tensor(float(self.start.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _problem(self, loss: Tensor, batch: Batch) -> str | None:
        bad = ~torch.isfinite(loss)
        if not bool(bad.any()):
            return None
        members, columns = bad.cpu().nonzero(as_tuple=True)
        named = sorted({self.trajectory.members[m] for m in members.tolist()})
        rows = sorted(set(batch.example_id[members, columns].tolist()))[:10]
        return (
            f"the loss is not finite at step {self.steps} for members {named}, rows {rows}; "
            "lower ensemble.lr, or set ensemble.clip_norm, or look at those rows"
        )
