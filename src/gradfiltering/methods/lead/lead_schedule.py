"""LEAD as an update schedule: rounds of the curriculum, loss changes predicted from gradients."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradfiltering.finetuning.update_schedule import RoundReport
from gradfiltering.methods.lead.curriculum import Curriculum
from gradfiltering.methods.lead.dynamic_uncertainty import predict_loss_change

LOGGED_METRICS = ("cluster", "fall", "reward", "predicted_change", "distinct", "lr")


class RoundGradients:
    """Mean gradients of the last round, and of the round in which each cluster was first trained.

    Attributes:
        first: cluster -> [P] float32.
        last: [P] float32, None before the first round.
    """

    def __init__(self) -> None:
        self.first: dict[int, Tensor] = {}
        self.last: Tensor | None = None

    def predict_change(self, cluster_index: int, learning_rate: float) -> float:
        """Return ΔL of a round of a cluster."""
        if self.last is None:
            return 0.0
        last_squared_norm, first_gradient = float(self.last.square().sum()), self.first.get(cluster_index)
        if first_gradient is None:
            return predict_loss_change(learning_rate, last_squared_norm, None, 1.0)
        first_squared_norm = float(first_gradient.square().sum())
        norm_product = math.sqrt(first_squared_norm * last_squared_norm)
        cosine = float(first_gradient @ self.last) / norm_product if norm_product else 1.0
        return predict_loss_change(learning_rate, last_squared_norm, first_squared_norm, min(max(cosine, -1.0), 1.0))

    def add_round(self, cluster_index: int, mean_gradient: Tensor) -> None:
        """Take in a round's mean gradient, [P] float32."""
        self.first.setdefault(cluster_index, mean_gradient)
        self.last = mean_gradient


class LeadSchedule:
    """Trains in rounds that the curriculum selects, until the budget of different rows is used up.

    A round's losses and its gradient are observed in its own updates, so a round costs no more than
    training on its rows. The number of updates is not known in advance: the learning rate follows
    the share of the budget in use.

    Args:
        curriculum: selects.
        batch_size: most rows of one update; a round is cut into updates of even size.
    """

    observes_gradients = True
    remaining_rounds = None

    def __init__(self, curriculum: Curriculum, batch_size: int):
        self.curriculum = curriculum
        self.batch_size = batch_size
        self.length = curriculum.budget
        self.gradients = RoundGradients()

    @property
    def progress(self) -> int:
        """Different rows that were trained on."""
        return self.curriculum.distinct_rows

    def plan_round(self) -> list[np.ndarray]:
        """Return the rows of each update of the next round."""
        row_indices = self.curriculum.select_round()
        return np.array_split(row_indices, math.ceil(len(row_indices) / self.batch_size))

    def record_round(self, report: RoundReport) -> dict[str, float]:
        """Update bandit, IDU and gradients; return the round's metrics."""
        assert report.mean_gradient is not None, "reports hold the gradient that the schedule observes"
        cluster_index = int(self.curriculum.pool.cluster_indices[report.row_indices[0]])
        loss_change = self.gradients.predict_change(cluster_index, report.learning_rate)
        history_entry = self.curriculum.learn_round(report.row_indices, report.example_losses, loss_change)
        history_entry.update(lr=report.learning_rate, updates=report.updates_taken)
        self.gradients.add_round(cluster_index, report.mean_gradient)
        metrics = {f"lead/{name}": float(history_entry[name]) for name in LOGGED_METRICS}
        probabilities = {f"lead/probability_{arm}": value for arm, value in enumerate(history_entry["probability"])}
        return metrics | probabilities

    def export_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and JSON values from which `restore_state` continues."""
        state_arrays, state = self.curriculum.export_state()
        tensors = {f"curriculum/{name}": torch.from_numpy(value) for name, value in state_arrays.items()}
        tensors |= {f"first/{cluster_index}": gradient for cluster_index, gradient in self.gradients.first.items()}
        if self.gradients.last is not None:
            tensors["last"] = self.gradients.last.clone()  # it may be the first of its cluster too
        return tensors, state

    def restore_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Continue from an exported state."""
        state_arrays = {
            name.removeprefix("curriculum/"): value.numpy()
            for name, value in tensors.items()
            if name.startswith("curriculum/")
        }
        self.curriculum.restore_state(state_arrays, state)
        # Copies are aligned in memory as fresh tensors are, so that their sums round alike.
        copies = {name: value.clone() for name, value in tensors.items()}
        self.gradients.last = copies.get("last")
        self.gradients.first = {
            int(name.removeprefix("first/")): value for name, value in copies.items() if name.startswith("first/")
        }
