"""The order in which fine-tuning takes its rows: fixed before, or decided while the model learns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from gradfiltering.seeding import numpy_rng


@dataclass(frozen=True)
class RoundReport:
    """Observations from training on the rows of one round.

    Attributes:
        row_indices: [n] int64, the round's rows in the order of training.
        example_losses: [n] float64, nats per response token, each computed just before the row's
            update.
        mean_gradient: [P] float32 on the CPU, mean over the rows before clipping; None unless the
            schedule observes it.
        learning_rate: of the round's updates.
        updates_taken: in the whole training, this round included.
    """

    row_indices: np.ndarray
    example_losses: np.ndarray
    mean_gradient: Tensor | None
    learning_rate: float
    updates_taken: int


class UpdateSchedule(Protocol):
    """Decides the rows of the coming updates, one round of updates after the other.

    Attributes:
        observes_gradients: whether reports need the mean gradient.
        length: value of `progress` at which training ends; the learning rate decays towards it.
    """

    observes_gradients: bool
    length: int

    @property
    def progress(self) -> int:
        """Amount of training done, from 0 to `length`."""
        ...

    @property
    def remaining_rounds(self) -> int | None:
        """Rounds left until training ends; None where that is not known in advance."""
        ...

    def plan_round(self) -> Sequence[np.ndarray]:
        """Return the row indices of each update of the next round; changes nothing."""
        ...

    def record_round(self, report: RoundReport) -> Mapping[str, float]:
        """Take in the observations of the planned round; return metrics to log."""
        ...

    def export_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and JSON values from which `restore_state` continues."""
        ...

    def restore_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Continue from an exported state."""
        ...


class EpochSchedule:
    """Takes every row once an epoch, in an order drawn anew for each epoch; a round is one update.

    Args:
        row_count: rows to train on.
        epochs: passes over them.
        batch_size: rows of one update; the last update of an epoch may have fewer.
        seed: the run's seed.
        update_count: updates in all, in the place of `epochs`; the last epoch may then end early.
    """

    observes_gradients = False

    def __init__(self, row_count: int, epochs: int, batch_size: int, seed: int, update_count: int | None = None):
        self.progress = 0
        self.updates: list[np.ndarray] = []
        epoch = 0
        while len(self.updates) < update_count if update_count is not None else epoch < epochs:
            row_order = numpy_rng(seed, "target rows", epoch).permutation(row_count)
            self.updates += [row_order[start : start + batch_size] for start in range(0, row_count, batch_size)]
            epoch += 1
        self.updates = self.updates[:update_count]
        self.length = len(self.updates)

    @property
    def remaining_rounds(self) -> int:
        """Updates left."""
        return self.length - self.progress

    def plan_round(self) -> list[np.ndarray]:
        """Return the rows of the next update."""
        return [self.updates[self.progress]]

    def record_round(self, report: RoundReport) -> dict[str, float]:
        """Count the update."""
        self.progress += 1
        return {}

    def export_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the number of updates taken; the order follows from the seed."""
        return {}, {"updates_taken": self.progress}

    def restore_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Continue after the updates that were taken."""
        self.progress = state["updates_taken"]
