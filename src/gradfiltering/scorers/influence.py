"""LESS's arithmetic: gradients as Adam would apply them, and their influence on validation rows."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def adam_direction(gradient: Tensor, first: Tensor, second: Tensor, betas: tuple[float, float], eps: float) -> Tensor:
    r"""\(m / \sqrt{v + ε}\) with the gradient folded into Adam's moments (LESS, Xia et al., ICML 2024, sec. 3.1).

    As in the published code there is no bias correction, and ε stands under the root, where Adam adds it beside it.

    Args:
        gradient: [..., P] of one or more examples.
        first: [P] Adam's m, `exp_avg`.
        second: [P] Adam's v, `exp_avg_sq`.
        betas: Adam's decay rates.
        eps: ε.

    Returns:
        [..., P].
    """
    folded = betas[0] * first + (1 - betas[0]) * gradient
    spread = betas[1] * second + (1 - betas[1]) * gradient.square()
    return folded / torch.sqrt(spread + eps)


def influence(
    candidates: Sequence[np.ndarray], validation: Sequence[np.ndarray], tasks: np.ndarray, rates: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    r"""\(\max_s \sum_t η_t \, \mathrm{mean}_{v ∈ s} \cos(\tilde g_i^{(t)}, g_v^{(t)})\) over tasks s (LESS, sec. 3).

    Args:
        candidates: [N, K] of each checkpoint: projections of Adam directions.
        validation: [V, K] of each checkpoint: projections of plain gradients, by the same projection.
        tasks: [V] name or number of each validation row's task.
        rates: η, the mean learning rate around each checkpoint.

    Returns:
        [N] score and [N, S] influence on each task, in the order of their sorted names.
    """
    names, place = np.unique(tasks, return_inverse=True)
    members = (place[:, None] == np.arange(len(names))) / np.bincount(place)  # [V, S] averages over a task's rows
    by_task = np.zeros((len(candidates[0]), len(names)))
    for ours, theirs, rate in zip(candidates, validation, rates, strict=True):
        # The mean of cosines is the product with the mean of unit vectors.
        by_task += rate * unit(ours) @ (unit(theirs).T @ members)
    return by_task.max(axis=1), by_task


def unit(vectors: np.ndarray) -> np.ndarray:
    """[N, K] vectors of length 1 in float64; zero stays zero."""
    wide = vectors.astype(np.float64)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.divide(wide, length, out=np.zeros_like(wide), where=length > 0)


def round_robin(by_task: np.ndarray, count: int) -> list[int]:
    """Rows by turns: each task takes the row that influences it most among those left.

    Args:
        by_task: [N, S].
        count: rows to take, at most N.

    Returns:
        Positions in the order of choice.
    """
    orders = [iter(np.lexsort((np.arange(len(by_task)), -column)).tolist()) for column in by_task.T]
    chosen: dict[int, None] = {}
    while len(chosen) < count:
        for order in orders:
            if len(chosen) < count:
                chosen[next(row for row in order if row not in chosen)] = None
    return list(chosen)
