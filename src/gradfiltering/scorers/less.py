"""LESS: rows whose gradients point where validation rows would have the model go."""

from typing import Any, Literal

import numpy as np

from gradfiltering.errors import UserError
from gradfiltering.options import PositiveInt, model_validator, options
from gradfiltering.requests import Evidence, Request, TaskGradients
from gradfiltering.scorers.base import Scorer, Scores

MAX_TASKS = 100  # each gets a column in scores.parquet
BLOCK_ROWS = 4096  # rows widened to float64 at once


@options
class LESS(Scorer):
    r"""\(\max_s \sum_t η_t \, \mathrm{mean}_{v ∈ s} \cos(Γ_i^{(t)}, g_v^{(t)})\).

    Source: Xia et al., ICML 2024, sec. 3. Γ is the direction in which Adam would go given row i's
    gradient at checkpoint t, g the plain gradient of a validation row of task s, both projected
    alike; η is the mean learning rate of the epoch that ends at t. As in the published code the η
    are scaled to sum to 1, so that an influence is a mean cosine.

    Attributes:
        checkpoints: epochs t, from 1 on; before training Adam has no moments.
        members: number of members of the ensemble, from the first, whose influences are averaged.
        validation: a file of validation rows, None for the held-out ones.
        task: field that names a validation row's task; `auto` for `source` if there is one, None
            for one task.
        combine: `max` over tasks, or `round_robin`: tasks take turns, each with the row that helps
            it most among those left, and the score falls with a row's turn, so that the top k are
            the first k taken.
    """

    checkpoints: tuple[PositiveInt, ...] = (1, 2)
    members: PositiveInt = 1
    validation: str | None = None
    task: str | None = "auto"
    combine: Literal["max", "round_robin"] = "max"

    @model_validator(mode="after")
    def _check_checkpoints(self) -> "LESS":
        if not self.checkpoints or len(set(self.checkpoints)) < len(self.checkpoints):
            raise UserError("give different epochs as checkpoints, such as [1,2]", arguments=("checkpoints",))
        return self

    @property
    def gradients_request(self) -> TaskGradients:
        """Gradients at the checkpoints."""
        epochs = tuple(sorted(self.checkpoints))
        return TaskGradients(epochs, self.members, self.validation, self.task)

    @property
    def requests(self) -> frozenset[Request[Any]]:
        """Gradients at the checkpoints."""
        return frozenset({self.gradients_request})

    @property
    def row_wise(self) -> bool:
        """True unless tasks take turns."""
        return self.combine == "max"

    def check_members(self, member_count: int) -> None:
        """Refuse to read more members than there are."""
        if self.members > member_count:
            raise UserError(
                f"gradients of {self.members} members are read, and the ensemble has {member_count}",
                owner=self,
                arguments=("members",),
            )

    def score(self, evidence: Evidence) -> Scores:
        """Combine the influences on the tasks; each stands beside the score.

        Raises:
            UserError: the validation rows name too many tasks, or all learning rates are 0.
        """
        gradients = evidence.get(self.gradients_request)
        tasks, task_indices = np.unique(gradients.validation_tasks, return_inverse=True)
        if len(tasks) > MAX_TASKS:
            raise UserError(
                f"the validation rows name {len(tasks)} tasks, and at most {MAX_TASKS} are told "
                "apart; name another field, or null for one task",
                owner=self,
                arguments=("task",),
            )
        rates = np.asarray(gradients.learning_rates)
        if not rates.sum() > 0:
            raise UserError(
                "checkpoints are weighed by their learning rates, and all of these are 0; train "
                "with a positive learning rate"
            )
        influences = np.zeros((len(evidence.example_ids), len(tasks)))
        for rate_share, member_directions, member_validation in zip(
            rates / sum(gradients.learning_rates),
            gradients.row_directions,
            gradients.validation_gradients,
            strict=True,
        ):
            for directions, validation in zip(member_directions, member_validation, strict=True):
                member_influences = task_influences(directions, validation, task_indices)
                influences += rate_share / self.members * member_influences
        score_columns = {f"influence_{task}": influences[:, index] for index, task in enumerate(tasks)}
        if self.combine == "max":
            return Scores(evidence.example_ids, influences.max(axis=1), score_columns)
        score = np.empty(len(influences))
        score[take_turns(influences)] = 1 - np.arange(len(influences)) / len(influences)
        return Scores(evidence.example_ids, score, score_columns)


def task_influences(
    row_directions: np.ndarray, validation_gradients: np.ndarray, task_indices: np.ndarray
) -> np.ndarray:
    """Compute each row's mean cosine with the validation rows of each task.

    Args:
        row_directions: [N, K].
        validation_gradients: [V, K].
        task_indices: [V] each validation row's task, 0 to S − 1; each occurs.

    Returns:
        [N, S] float64; 0 where a gradient is zero.
    """
    # The mean of cosines is the product with the mean of unit vectors.
    task_count = task_indices.max() + 1
    averages = (task_indices[:, None] == np.arange(task_count)) / np.bincount(task_indices)  # [V, S]
    task_directions = unit_vectors(validation_gradients).T @ averages  # [K, S]
    starts = range(0, len(row_directions), BLOCK_ROWS)
    blocks = (unit_vectors(row_directions[start : start + BLOCK_ROWS]) for start in starts)
    return np.concatenate([block @ task_directions for block in blocks])


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """[N, K] vectors of length 1 in float64; zero stays zero."""
    wide_vectors = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide_vectors, axis=1, keepdims=True)
    unit_rows: np.ndarray = np.divide(wide_vectors, lengths, out=np.zeros_like(wide_vectors), where=lengths > 0)
    return unit_rows


def take_turns(influences: np.ndarray) -> list[int]:
    """Order all rows by turns: each task takes the row that influences it most among those left.

    Args:
        influences: [N, S].

    Returns:
        Row positions in the order of choice; ties by position.
    """
    positions = np.arange(len(influences))
    task_orders = [iter(np.lexsort((positions, -task_influence)).tolist()) for task_influence in influences.T]
    taken: dict[int, None] = {}
    while len(taken) < len(influences):
        for task_order in task_orders:
            if len(taken) < len(influences):
                taken[next(row for row in task_order if row not in taken)] = None
    return list(taken)
