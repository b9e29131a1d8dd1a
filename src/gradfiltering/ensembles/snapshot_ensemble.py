"""One trained member, measured M times along an epoch: snapshots as members (Huang et al., ICLR 2017)."""

from typing import Self

from gradfiltering.ensembles.lora_ensemble import AUTO, LoraEnsemble, SnapshotMeasurement
from gradfiltering.errors import UserError
from gradfiltering.options import model_validator, options


@options
class SnapshotEnsemble(LoraEnsemble):
    """M snapshots of one member at evenly spaced optimiser steps of an epoch, the last one at its end.

    Member m of the log at epoch e is the adapter after step ceil((m + 1)·S/M) of that epoch, of S steps. So G_s and G_t
    are means along the early and the late epoch, each member compares the same position in both, and V_t is the
    variance over the late epoch's time. At epoch 0, before training, all members are the start. (The learning rate
    stays constant; the cycles of snapshot ensembles in the literature would change the trained member.)

    The trained member is member 0 of the LoRA ensemble, and shared with it: an epoch that is in the cache without its
    snapshots is trained once more, from the epoch before, to the same end.
    """

    @model_validator(mode="after")
    def _check_snapshots(self) -> Self:
        if self.m == AUTO:
            raise UserError(
                "the number of snapshots cannot be auto: one more snapshot moves all others; give a number, or choose "
                "the LoRA ensemble",
                arguments=("m",),
            )
        return self

    @property
    def online_obstacle(self) -> str:
        """Why the norms of the training steps are not those of the snapshots."""
        return "a training step measures each row once in an epoch, at whatever step it falls in"

    @property
    def update_obstacle(self) -> str:
        """The members are snapshots along an epoch."""
        return (
            "the members of this ensemble are snapshots along an epoch, so that the early and the late one cannot be "
            "numbers of updates; give epochs, or choose the LoRA ensemble"
        )

    @property
    def trained_member_ids(self) -> range:
        """One member, whatever the number of snapshots."""
        return range(1)

    def describe_measurement(self, member_id: int, moment: int, steps_per_epoch: int) -> SnapshotMeasurement:
        """Describe a snapshot: the trained member after its share of the epoch.

        Raises:
            UserError: an epoch has fewer steps than there are snapshots.
        """
        if moment == 0:
            return SnapshotMeasurement(0)
        snapshot_count = len(self.member_ids)
        if steps_per_epoch < snapshot_count:
            raise UserError(
                f"an epoch of {steps_per_epoch} steps has no {snapshot_count} snapshots; ask for {steps_per_epoch} or "
                "fewer, or lower the batch size",
                owner=type(self),
                arguments=("m", "batch_size"),
            )
        step = -(-(member_id + 1) * steps_per_epoch // snapshot_count)
        return SnapshotMeasurement(0, step=step if step < steps_per_epoch else None)
