"""One trained member, looked at M times along an epoch: snapshots in the place of members (Huang et al., ICLR 2017)."""

from dataclasses import dataclass

from gradfiltering.ensembles.lora_ensemble import AUTO, EnsembleSettings, Reading
from gradfiltering.errors import UserError


@dataclass(frozen=True)
class SnapshotEnsemble(EnsembleSettings):
    """M snapshots of one member at evenly spaced optimiser steps of an epoch, the last one at its end.

    Member m of the log at epoch e is the adapter after step ceil((m + 1)·S/M) of that epoch, of S steps. So G_s and G_t
    are means along the early and the late epoch, each member compares the same place of both, and V_t is the variance
    over the late epoch's time. At epoch 0, before training, all members are the start. (The learning rate stays
    constant; the cycles of the snapshot ensembles in the literature would make the trained member another one.)

    The trained member is member 0 of the LoRA ensemble, and shared with it: an epoch that is in the store without its
    snapshots is trained once more, from the epoch before, to the same end.
    """

    def __post_init__(self):
        super().__post_init__()
        if self.m == AUTO:
            raise UserError(
                f"ensemble.m={AUTO}: one more snapshot moves all others; give a number, or choose ensemble=lora"
            )
        self.refuse_online("a training step measures each row once in an epoch, at whatever step it falls in")

    @property
    def trained_members(self) -> range:
        """One member, whatever the number of snapshots."""
        return range(1)

    def reading(self, member: int, epoch: int, steps: int) -> Reading:
        """The trained member after its share of the epoch.

        Raises:
            UserError: an epoch has fewer steps than there are snapshots.
        """
        if epoch == 0:
            return Reading(0)
        count = len(self.members)
        if steps < count:
            raise UserError(
                f"ensemble.m={self.m} snapshots of an epoch that has {steps} steps; set ensemble.m={steps} or less, "
                "or lower ensemble.batch_size"
            )
        step = -(-(member + 1) * steps // count)
        return Reading(0, step=step if step < steps else None)
