"""Snapshots of an ensemble's training: the early and the late one that are compared."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Self

from gradfiltering.errors import UserError
from gradfiltering.options import NonNegativeInt, PositiveInt, model_validator, options
from gradfiltering.requests import SnapshotUnit


@options
class SnapshotPair:
    """The two snapshots at which gradient norms are compared; 0 is before training.

    Attributes:
        early: s.
        late: t > s.
        unit: what both are counted in: epochs, or updates where an epoch is too long.
        longest_epoch: updates that an epoch of this pair has at most: where an epoch has more, so many updates count in
            its place, and the pair is one in updates. None for no limit.
    """

    early: NonNegativeInt
    late: NonNegativeInt
    unit: SnapshotUnit = "epoch"
    longest_epoch: PositiveInt | None = None

    @property
    def first_pair(self) -> "SnapshotPair":
        """The pair itself, as for a search it is the first that is tried."""
        return self

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.early >= self.late:
            raise UserError(
                f"the early {self.unit} ({self.early}) must come before the late one ({self.late}); give others",
                arguments=("early", "late"),
            )
        if self.longest_epoch is not None and self.unit == "update":
            raise UserError(
                "a limit of an epoch is for snapshots in epochs; leave it out", arguments=("longest_epoch",)
            )
        return self

    def settle(self, steps_per_epoch: int) -> "SnapshotPair":
        """Return the pair without a limit: in updates where an epoch has more of them than `longest_epoch`.

        Args:
            steps_per_epoch: updates of an epoch.
        """
        if self.longest_epoch is None or steps_per_epoch <= self.longest_epoch:
            return SnapshotPair(self.early, self.late, self.unit)
        return SnapshotPair(self.early * self.longest_epoch, self.late * self.longest_epoch, "update")

    def timeline(self, steps_per_epoch: int) -> "Timeline":
        """Return the moments at which members are stored on the way to these snapshots."""
        updates = (self.early, self.late) if self.unit == "update" else ()
        return Timeline(steps_per_epoch, self.unit, tuple(update for update in updates if update > 0))


class TrainingStretch(NamedTuple):
    """The updates of training between two moments that follow each other.

    Attributes:
        moment: that the stretch leads to.
        first_update: updates made before it.
        last_update: updates made at its end.
    """

    moment: int
    first_update: int
    last_update: int


@dataclass(frozen=True)
class Timeline:
    """Moments in training at which members are stored, and from which their training goes on.

    These are the ends of all epochs, or given numbers of updates. A moment is an epoch in the one case and a number of
    updates in the other; 0 is the start in both.

    Attributes:
        steps_per_epoch: optimiser steps.
        unit: what moments are counted in.
        stored_updates: numbers of updates, ascending; empty where the unit is the epoch.
    """

    steps_per_epoch: int
    unit: SnapshotUnit = "epoch"
    stored_updates: tuple[int, ...] = ()

    def count_updates(self, moment: int) -> int:
        """Return the updates made by a moment."""
        return moment if self.unit == "update" else moment * self.steps_per_epoch

    def list_moments(self, first: int, last: int) -> list[int]:
        """List the moments after `first`, up to and with `last`."""
        if self.unit == "epoch":
            return list(range(first + 1, last + 1))
        return [updates for updates in self.stored_updates if first < updates <= last]

    def list_stretches(self, start_moment: int, last_moment: int) -> list[TrainingStretch]:
        """List the stretches of training that lead from one moment to another."""
        moments = self.list_moments(start_moment, last_moment)
        update_counts = [self.count_updates(moment) for moment in (start_moment, *moments)]
        return [
            TrainingStretch(moment, first_update, last_update)
            for moment, (first_update, last_update) in zip(moments, pairwise(update_counts), strict=True)
        ]

    def find_epoch(self, updates: int) -> int:
        """Return the epoch, from 1, that the update after `updates` others belongs to."""
        return updates // self.steps_per_epoch + 1

    def moment_key(self, moment: int) -> dict[str, Any]:
        """Return the part of a cache key that names a moment."""
        return {self.unit: moment}
