"""Instance-level dynamic uncertainty (LEAD, arXiv 2505.07437): expected losses, no extra passes."""

import math

import numpy as np


def mix_gradients(last_squared_norm: float, first_squared_norm: float, cosine: float) -> float:
    r"""Return β in [0, 1] at which \(β g_k + (1 − β) g_{t−1}\) is shortest.

    Args:
        last_squared_norm: δ_{t−1}, squared norm of g_{t−1}, the last round's mean gradient.
        first_squared_norm: δ_k, squared norm of g_k, the mean gradient of the cluster's first
            round.
        cosine: of the angle between the two.
    """
    inner_product = math.sqrt(first_squared_norm * last_squared_norm) * cosine
    squared_distance = first_squared_norm + last_squared_norm - 2 * inner_product
    # Equal gradients: any β gives the same mixture.
    return 0.0 if squared_distance <= 0 else min(max((last_squared_norm - inner_product) / squared_distance, 0.0), 1.0)


def predict_loss_change(
    learning_rate: float, last_squared_norm: float, first_squared_norm: float | None, cosine: float
) -> float:
    r"""Predict the change of a row's loss by the coming update, in nats per response token; never positive.

    \(−η [β² δ_k + (1 − β)² δ_{t−1} + 2 β (1 − β) \sqrt{δ_k δ_{t−1}} \cos φ]\), and \(−η δ_{t−1}\)
    on a cluster's first visit. The paper leaves open how δ and φ are measured; these are gradients
    of the adapter.

    Args:
        learning_rate: η, the coming update's.
        last_squared_norm: δ_{t−1}; 0 before the first round.
        first_squared_norm: δ_k; None on the cluster's first visit.
        cosine: of the angle φ between the two gradients; has no effect on a first visit.
    """
    if first_squared_norm is None:
        return -learning_rate * last_squared_norm
    beta = mix_gradients(last_squared_norm, first_squared_norm, cosine)
    inner_product = math.sqrt(first_squared_norm * last_squared_norm) * cosine
    mixed_squared_norm = (
        beta**2 * first_squared_norm + (1 - beta) ** 2 * last_squared_norm + 2 * beta * (1 - beta) * inner_product
    )
    return -learning_rate * mixed_squared_norm


def smooth_uncertainty(
    example_losses: np.ndarray, loss_change: float, previous_uncertainty: np.ndarray, smoothing: float
) -> np.ndarray:
    """Compute IDU_t = (1 − b)(L_t + ΔL) + b·IDU_{t−1}.

    Args:
        example_losses: [n] L_t, observed in the training step, before its update.
        loss_change: ΔL.
        previous_uncertainty: [n] IDU_{t−1}.
        smoothing: b.
    """
    return (1 - smoothing) * (example_losses + loss_change) + smoothing * previous_uncertainty
