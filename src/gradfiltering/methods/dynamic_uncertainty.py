"""Instance-level dynamic uncertainty (LEAD, arXiv 2505.07437): what a row still has to teach, without looking again."""

import math

import numpy as np


def mixing(last: float, first: float, cosine: float) -> float:
    r"""β in [0, 1] at which \(β g_k + (1 − β) g_{t−1}\) is shortest.

    Args:
        last: δ_{t−1}, squared norm of g_{t−1}, the last round's mean gradient.
        first: δ_k, squared norm of g_k, the mean gradient of the round in which the cluster was first trained.
        cosine: of the angle between the two.
    """
    between = math.sqrt(first * last) * cosine
    apart = first + last - 2 * between
    # Equal gradients: any β gives the same.
    return 0.0 if apart <= 0 else min(max((last - between) / apart, 0.0), 1.0)


def predicted_change(lr: float, last: float, first: float | None, cosine: float) -> float:
    r"""The change of a row's loss that the coming update would cause, in nats per response token; never positive.

    \(−η [β² δ_k + (1 − β)² δ_{t−1} + 2 β (1 − β) \sqrt{δ_k δ_{t−1}} \cos φ]\), and \(−η δ_{t−1}\) on a cluster's
    first visit. The paper leaves open how δ and φ are measured; these are gradients of the adapter.

    Args:
        lr: η, the coming update's learning rate.
        last: δ_{t−1}; 0 before the first round.
        first: δ_k; None on the cluster's first visit.
        cosine: of the angle φ between the two gradients; no matter on a first visit.
    """
    if first is None:
        return -lr * last
    beta = mixing(last, first, cosine)
    between = math.sqrt(first * last) * cosine
    return -lr * (beta**2 * first + (1 - beta) ** 2 * last + 2 * beta * (1 - beta) * between)


def smoothed(loss: np.ndarray, change: float, before: np.ndarray, smoothing: float) -> np.ndarray:
    """IDU_t = (1 − b)(L_t + ΔL) + b·IDU_{t−1}.

    Args:
        loss: [n] L_t, read off the training step, before its update.
        change: ΔL.
        before: [n] IDU_{t−1}.
        smoothing: b.
    """
    return (1 - smoothing) * (loss + change) + smoothing * before
