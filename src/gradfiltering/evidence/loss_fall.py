"""Snapshots given by the share of the fall in held-out loss that has happened: `epochs=loss_fall`."""

from dataclasses import replace
from typing import Annotated, Any, Self

import numpy as np
from annotated_types import Gt, Le

from gradfiltering.ensembles.heldout_member import HeldoutMember, HeldoutSplit, heldout_member_seed
from gradfiltering.ensembles.snapshots import SnapshotPair, Timeline
from gradfiltering.errors import UserError
from gradfiltering.evidence.base_model_losses import measure_base_loss_of_part
from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.evidence.ensemble_passes import EnsemblePasses, attach_ensemble
from gradfiltering.options import PositiveInt, Share, model_validator, options
from gradfiltering.requests import SnapshotUnit

ROUNDING = 1e-9  # of a share, so that 0.9 is reached where the loss has fallen from 3.0 to 2.1 of 2.0


@options
class LongestTraining(SnapshotPair):
    """So many epochs of training, counted in updates once it is known how many an epoch has."""

    def settle(self, steps_per_epoch: int) -> SnapshotPair:
        """Return the pair in updates."""
        return SnapshotPair(self.early * steps_per_epoch, self.late * steps_per_epoch, "update")


@options
class LossFallSnapshots:
    """A pair of numbers of updates, read off the held-out loss of one member that is trained ahead.

    Norms fall while the model learns what rows share; on many rows that is over long before an epoch ends. So one
    member, the one that the held-out loss is of, is trained on most of the rows, and its loss on the others is
    measured after numbers of updates that grow by an equal factor. A share of the fall has happened at the first of
    them by which the loss has fallen by as much of the way to its least value.

    Attributes:
        early: share of the fall at the early snapshot.
        late: share at the late one.
        epochs: that the member is trained for at most; the fall is the largest within them.
        measurements: numbers of updates after which the loss is measured.
        heldout_share: of the rows that it never sees, of which there are at least eight. With the share that
            `HeldoutMember` has, it is the very member that the held-out loss comes from.
    """

    early: Share = 0.5
    late: Share = 0.9
    epochs: PositiveInt = 2
    measurements: PositiveInt = 12
    heldout_share: Annotated[float, Gt(0), Le(0.5)] = 0.1

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.early >= self.late:
            raise UserError(
                f"the share of the fall at the early snapshot ({self.early}) must be smaller than at the late one "
                f"({self.late}); give others",
                arguments=("early", "late"),
            )
        if self.measurements < 3:
            raise UserError(
                f"{self.measurements} measurements of the loss cannot tell an early from a late snapshot; take 3 or "
                "more",
                arguments=("measurements",),
            )
        return self

    @property
    def unit(self) -> SnapshotUnit:
        """Unit that the pair is counted in."""
        return "update"

    @property
    def first_pair(self) -> SnapshotPair:
        """The longest training that may follow, for the plan."""
        return LongestTraining(0, self.epochs)

    def list_updates(self, steps_per_epoch: int) -> list[int]:
        """Return the numbers of updates after which the loss is measured, ascending."""
        last_update = self.epochs * steps_per_epoch
        return sorted({round(update) for update in np.geomspace(1, last_update, self.measurements).tolist()})

    def choose_pair(self, losses: dict[int, float]) -> SnapshotPair:
        """Choose the snapshots.

        Args:
            losses: number of updates -> held-out loss, that at 0 included.

        Raises:
            UserError: the loss never fell, or too few numbers of updates were looked at.
        """
        fall = losses[0] - min(losses.values())
        if fall <= 0:
            raise UserError(
                f"the held-out loss never fell below {losses[0]:.3f}, where training began, so no share of its fall "
                "can be a snapshot; change the learning rate, or give epochs or numbers of updates",
                owner=type(self),
                arguments=("early", "late"),
            )
        fallen_shares = {update: (losses[0] - loss) / fall for update, loss in sorted(losses.items())}
        early, late = (
            next(update for update, fallen in fallen_shares.items() if fallen >= share - ROUNDING)
            for share in (self.early, self.late)
        )
        if early == late:
            raise UserError(
                f"{self.early:.0%} and {self.late:.0%} of the fall in held-out loss happened by the same update, "
                f"{late}, of those that it was measured after; measure it more often, or take a lower learning rate",
                owner=type(self),
                arguments=("measurements",),
            )
        return SnapshotPair(early, late, "update")


def find_loss_fall(snapshots: LossFallSnapshots, context: MeasurementContext) -> tuple[SnapshotPair, dict[str, Any]]:
    """Train the member that goes ahead, where the cache lacks it, and choose the snapshots by its held-out loss.

    Args:
        snapshots: shares of the fall.
        context: of the ensemble; its report takes the costs.

    Returns:
        The pair, and what it was chosen by, for the summary.
    """
    split = HeldoutMember(train=True, share=snapshots.heldout_share).split(context.examples, False, context.seed)
    assert split is not None, "a split that was asked for is made or refused"
    losses = _measure_fall(snapshots, context, split)
    pair = snapshots.choose_pair(losses)
    curve = [{"update": update, "heldout_loss": loss} for update, loss in losses.items()]
    finding = {"early": pair.early, "late": pair.late, "unit": "update", "heldout_rows": len(split.heldout)}
    return pair, {**finding, "tried": curve}


def _measure_fall(snapshots: LossFallSnapshots, context: MeasurementContext, split: HeldoutSplit) -> dict[int, float]:
    """Return number of updates -> mean held-out loss, in nats per response token."""
    losses = {0: measure_base_loss_of_part(context, split.heldout)}
    settings = context.ensemble.single_member()
    member_context = replace(
        context,
        examples=split.training,
        heldout=None,
        seed=heldout_member_seed(context.seed),
        snapshots=SnapshotPair(0, 1, "update"),
    )
    with attach_ensemble(member_context, context.reports.ensemble.costs, split.heldout, settings) as attached:
        steps_per_epoch = attached.member_cache.timeline.steps_per_epoch
        updates = snapshots.list_updates(steps_per_epoch)
        timeline = Timeline(steps_per_epoch, "update", tuple(updates))
        member = replace(attached, member_cache=attached.member_cache.along(timeline))
        member.train(updates)
        passes = EnsemblePasses(member, split.heldout, "rows that the member that goes ahead never saw")
        for update in updates:
            losses[update] = passes.measure_mean_loss(settings.member_ids, update)
    return losses
