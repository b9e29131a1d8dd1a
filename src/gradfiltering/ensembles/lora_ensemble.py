"""The LoRA ensemble: M independently initialised adapters, and the settings that all ensembles share."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Final, Literal, NamedTuple, Self

import numpy as np

from gradfiltering.errors import UserError
from gradfiltering.gradients.dropout import Dropout
from gradfiltering.models.lora import LoraSettings
from gradfiltering.options import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ShareBelowOne,
    field,
    model_validator,
    options,
)
from gradfiltering.requests import SnapshotUnit
from gradfiltering.seeding import numpy_rng

AUTO = "auto"
ONLINE: Final = "online"
SNAPSHOT: Final = "snapshot"
MAX_SKETCHES = 1000  # of the adapters of a member in an epoch


class DropoutPass(NamedTuple):
    """A pass of measuring with dropout.

    Attributes:
        probability: share of the adapters' inputs that are dropped.
        pass_index: number of the pass; each has masks of its own.
    """

    probability: float
    pass_index: int


@dataclass(frozen=True)
class SnapshotMeasurement:
    """The parameters that a member of the gradient log is measured with at some moment.

    Attributes:
        trained_member_id: member whose adapter is measured.
        step: optimiser steps taken on the way to the moment; None at the moment itself.
        dropout: dropped inputs; None without dropout.
    """

    trained_member_id: int
    step: int | None = None
    dropout: DropoutPass | None = None


@options
class LoraEnsemble:
    """M members, each with a start and an order of rows of its own.

    Other ensembles derive from it and say which members are trained, on which rows, and how each member of the gradient
    log is read off the trained ones; the rest of the pipeline does not tell them apart.

    Attributes:
        m: number of members M, or `auto` for as many as make the selection stable.
        batch_size: examples of one update of each member.
        lr: learning rate of AdamW, constant after warm-up, so that it does not depend on the number of epochs.
        warmup_steps: steps of linear warm-up.
        betas, eps, weight_decay: of AdamW.
        clip_norm: each member's mean gradient is scaled down to this L2 norm; None for no clipping.
        collect: `snapshot` measures all rows with the parameters frozen after the epoch (the definition);
            `online` keeps the norms of the epoch's own training steps, which halves the work and ranks the rows
            differently (docs/findings.md, norms from training steps).
        bucket_batches: batches in a length bucket.
        trajectory_steps: a sketch of the adapters is recorded every so many steps, and at most `MAX_SKETCHES` times in
            an epoch.
        checkpoint_minutes: time between two checkpoints within an epoch.
        lora: shape and start of each adapter.
        train_rows: number of rows, drawn by the seed, that all members are trained on, where an epoch of all is too
            long; all rows are measured. None for all.
    """

    m: PositiveInt | Literal["auto"]
    batch_size: PositiveInt
    lr: PositiveFloat
    warmup_steps: NonNegativeInt
    betas: tuple[ShareBelowOne, ShareBelowOne]
    eps: PositiveFloat
    weight_decay: NonNegativeFloat
    clip_norm: PositiveFloat | None
    collect: Literal["snapshot", "online"]
    bucket_batches: PositiveInt
    trajectory_steps: PositiveInt
    checkpoint_minutes: PositiveFloat
    lora: LoraSettings
    train_rows: PositiveInt | None = field(default=None, kw_only=True)

    resamples_rows: ClassVar[bool] = False  # each member trains on a bootstrap sample of the rows

    @model_validator(mode="after")
    def _check_collect(self) -> Self:
        """Refuse norms of the training steps, for an ensemble that cannot be measured by them."""
        if self.collect == ONLINE and self.online_obstacle:
            raise UserError(
                f"{type(self).__name__} cannot collect online: {self.online_obstacle}; collect snapshots or choose the "
                "LoRA ensemble",
                arguments=("collect",),
            )
        return self

    def space_sketches(self, steps_per_epoch: int) -> int:
        """Return the steps between two sketches of the adapters, for epochs of a length."""
        return max(self.trajectory_steps, -(-steps_per_epoch // MAX_SKETCHES))

    @property
    def online_obstacle(self) -> str:
        """Why the norms of the training steps are not those of this ensemble; empty where they are."""
        return "" if self.train_rows is None else "rows that are not trained on have no norms of training steps"

    @property
    def member_ids(self) -> range:
        """Members of the gradient log, from 0."""
        return range(int(self.m))

    @property
    def trained_member_ids(self) -> range:
        """Members that must be trained."""
        return self.member_ids

    def draw_training_rows(self, row_count: int, seed: int) -> np.ndarray:
        """Return the positions of the rows to train on, ascending: a larger number adds rows to those of a smaller.

        Args:
            row_count: N rows that can be scored.
            seed: of the run.
        """
        if self.train_rows is None or self.train_rows >= row_count:
            return np.arange(row_count)
        return np.sort(numpy_rng(seed, "training rows").permutation(row_count)[: self.train_rows])

    def warmup_factor(self, step: int) -> float:
        """Return the share of `lr` that the update after `step` others is made with."""
        return min(1.0, (step + 1) / max(1, self.warmup_steps))

    def steps_per_epoch(self, row_count: int) -> int:
        """Return the optimiser steps of one epoch."""
        return -(-row_count // self.batch_size)

    def describe_measurement(self, member_id: int, moment: int, steps_per_epoch: int) -> SnapshotMeasurement:
        """Describe the parameters that a member of the gradient log is measured with.

        Args:
            member_id: of the log.
            moment: at which, or on the way to which.
            steps_per_epoch: optimiser steps.
        """
        return SnapshotMeasurement(member_id)

    def check_unit(self, unit: SnapshotUnit) -> None:
        """Refuse snapshots in updates, for an ensemble that is measured by the epoch.

        Raises:
            UserError: says why, and what to do instead.
        """
        if unit == "update" and self.update_obstacle:
            arguments = ("collect",) if self.collect == ONLINE else ()
            raise UserError(self.update_obstacle, owner=LoraEnsemble, arguments=arguments)

    @property
    def update_obstacle(self) -> str:
        """Why snapshots cannot be numbers of updates, and what to do instead; empty where they can."""
        if self.collect != ONLINE:
            return ""
        return (
            "norms of the training steps come from a whole epoch, so they cannot be of a number of updates; collect "
            "snapshots, or give epochs"
        )

    def training_key(self) -> dict[str, Any]:
        """Return the settings that tell trained members apart in the cache."""
        return {**asdict(self), "lora": self.lora.cache_key()}

    def training_dropout(self, member_ids: Sequence[int], epoch: int, seed: int) -> Dropout | None:
        """Return the dropout of an epoch's training steps, None for none."""
        return None

    def single_member(self) -> Self:
        """Return the settings of one member that is trained alike and measured once, after the epoch, as it is."""
        return replace(self, m=1, collect=SNAPSHOT)
