"""LESS: rows whose gradients point where validation rows would have the model go."""

from dataclasses import dataclass

import numpy as np

from gradfiltering.errors import UserError
from gradfiltering.evidence.base_model import Need
from gradfiltering.evidence.task_gradients import TaskGradients
from gradfiltering.scorers.base import Evidence, Scorer, Scores

COMBINE = ("max", "round_robin")
MOST_TASKS = 100  # each gets a column in scores.parquet
BLOCK = 4096  # rows widened to float64 at once


@dataclass(frozen=True)
class LESS(Scorer):
    r"""\(\max_s \sum_t η_t \, \mathrm{mean}_{v ∈ s} \cos(Γ_i^{(t)}, g_v^{(t)})\) (Xia et al., ICML 2024, sec. 3).

    Γ is the direction in which Adam would go given row i's gradient at checkpoint t, g the plain gradient of a
    validation row of task s, both projected alike; η is the mean learning rate of the epoch that ends at t. As in the
    published code the η are scaled to sum to 1, so that an influence is a mean cosine.

    Attributes:
        checkpoints: epochs t, from 1 on.
        members: the first so many members of the ensemble, whose influences are averaged.
        validation: a file of validation rows, None for the held-out ones.
        task: field that names a validation row's task; `auto` for `source` if there is one, None for one task.
        combine: `max` over tasks, or `round_robin`: tasks take turns, each with the row that helps it most among those
            left, and the score falls with a row's turn, so that the top k are the first k taken.
    """

    checkpoints: list[int]
    members: int
    validation: str | None
    task: str | None
    combine: str

    def __post_init__(self):
        epochs = self.checkpoints if isinstance(self.checkpoints, list) else []
        whole = all(isinstance(epoch, int) and epoch > 0 for epoch in epochs)
        if not epochs or not whole or len(set(epochs)) < len(epochs):
            raise UserError(
                f"scorer.checkpoints={self.checkpoints}: give a list of different epochs from 1 on, such as [1,2] "
                "(before training Adam has no moments)"
            )
        if self.members < 1:
            raise UserError(f"scorer.members={self.members}: give a positive number")
        if self.combine not in COMBINE:
            raise UserError(f"scorer.combine={self.combine}: give one of: {', '.join(COMBINE)}")

    @property
    def need(self) -> TaskGradients:
        """Gradients at the checkpoints."""
        return TaskGradients(tuple(sorted(self.checkpoints)), self.members, self.validation, self.task)

    @property
    def needs(self) -> frozenset[Need]:  # type: ignore[override]
        """Gradients at the checkpoints, and nothing else."""
        return frozenset({self.need})

    def check(self, members: int) -> None:
        """Refuses more members than there are."""
        if self.members > members:
            raise UserError(f"scorer.members={self.members} and ensemble.m={members}; lower the one or raise the other")

    def score(self, evidence: Evidence) -> Scores:
        """Influence on the task that a row helps most, or its turn; the influence on each task stands beside it."""
        found = evidence.influences[self.need]
        names, place = np.unique(found.tasks, return_inverse=True)
        if len(names) > MOST_TASKS:
            raise UserError(
                f"scorer.task={self.task}: the validation rows name {len(names)} tasks, and at most {MOST_TASKS} are "
                "told apart; name another field, or give scorer.task=null for one task"
            )
        if not sum(found.rates) > 0:
            raise UserError("ensemble.lr=0: checkpoints are weighed by their learning rates; give a positive rate")
        shares = np.asarray(found.rates) / sum(found.rates)
        by_task = np.zeros((len(evidence.example_ids), len(names)))
        for share, rows, validation in zip(shares, found.rows, found.validation, strict=True):
            for ours, theirs in zip(rows, validation, strict=True):
                by_task += share / self.members * influence(ours, theirs, place)
        columns = {f"influence_{name}": by_task[:, task] for task, name in enumerate(names)}
        if self.combine == "max":
            return Scores(evidence.example_ids, by_task.max(axis=1), columns)
        score = np.empty(len(by_task))
        score[round_robin(by_task)] = 1 - np.arange(len(by_task)) / len(by_task)
        return Scores(evidence.example_ids, score, columns)


def influence(rows: np.ndarray, validation: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    """Mean cosine of each row with the validation rows of each task.

    Args:
        rows: [N, K].
        validation: [V, K].
        tasks: [V] number of each validation row's task, 0 to S − 1, each of which occurs.

    Returns:
        [N, S] float64; 0 where a gradient is zero.
    """
    members = (tasks[:, None] == np.arange(tasks.max() + 1)) / np.bincount(tasks)  # [V, S] averages over a task's rows
    # The mean of cosines is the product with the mean of unit vectors.
    aims = unit(validation).T @ members  # [K, S]
    blocks = range(0, len(rows), BLOCK)
    return np.concatenate([unit(rows[start : start + BLOCK]) @ aims for start in blocks])


def unit(vectors: np.ndarray) -> np.ndarray:
    """[N, K] vectors of length 1 in float64; zero stays zero."""
    wide = vectors.astype(np.float64)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.divide(wide, length, out=np.zeros_like(wide), where=length > 0)


def round_robin(by_task: np.ndarray) -> list[int]:
    """All rows in the order of turns: each task takes the row that influences it most among those left.

    Args:
        by_task: [N, S].

    Returns:
        Positions in the order of choice; ties by position.
    """
    orders = [iter(np.lexsort((np.arange(len(by_task)), -column)).tolist()) for column in by_task.T]
    chosen: dict[int, None] = {}
    while len(chosen) < len(by_task):
        for order in orders:
            if len(chosen) < len(by_task):
                chosen[next(row for row in order if row not in chosen)] = None
    return list(chosen)
