"""Snapshots of an ensemble's training: the early and the late one that are compared."""

from typing import Self

from gradfiltering.errors import UserError
from gradfiltering.options import NonNegativeInt, model_validator, options


@options
class SnapshotPair:
    """The two epochs after which gradient norms are compared; epoch 0 is before training.

    Attributes:
        early: s.
        late: t > s.
    """

    early: NonNegativeInt
    late: NonNegativeInt

    @property
    def first_pair(self) -> "SnapshotPair":
        """The pair itself, as for a search it is the first that is tried."""
        return self

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.early >= self.late:
            raise UserError(
                f"the early epoch ({self.early}) must come before the late one ({self.late}); give others",
                arguments=("early", "late"),
            )
        return self
