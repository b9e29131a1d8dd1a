"""Snapshots of an ensemble's training: the early and the late one that are compared."""

from dataclasses import dataclass

from gradfiltering.errors import UserError


@dataclass(frozen=True)
class SnapshotPair:
    """The two epochs after which gradient norms are compared; epoch 0 is before training.

    Attributes:
        early: s.
        late: t > s.
    """

    early: int
    late: int

    def __post_init__(self):
        if not 0 <= self.early < self.late:
            raise UserError(f"epochs.early={self.early}, epochs.late={self.late}: give 0 <= early < late")
