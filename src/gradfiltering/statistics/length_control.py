"""What PWS would be if both answers were of like length (after length-controlled AlpacaEval, Dubois et al., 2024)."""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from gradfiltering.statistics.intervals import percentile_interval

RIDGE = 0.01  # keeps both coefficients finite where one side always wins
NEWTON_STEPS = 25
# A refit per resample costs more than a recount, and an interval needs no more than so many.
MOST_RESAMPLES = 1000
CHUNK = 100


@dataclass(frozen=True)
class LengthControlled:
    """A pairwise winning score without the pull of length.

    Attributes:
        value: from 0 to 2; 1 = as good as the opponent.
        low: lower end of the percentile bootstrap interval.
        high: upper end of it.
        length_effect: coefficient of the length difference; positive when longer answers win.
    """

    value: float
    low: float
    high: float
    length_effect: float


def length_controlled(
    outcomes: np.ndarray, differences: np.ndarray, resamples: int, confidence: float, seed: int
) -> LengthControlled:
    r"""Fits \(P(\text{win}) = \sigma(\theta + \phi \tanh(d / s_d))\) and tells \(2\sigma(\theta)\), PWS at d = 0.

    d is the difference of lengths and s_d its standard deviation; a tie counts as half a win, as it does in PWS. With
    one opponent and one judgement per prompt the difficulty of single prompts, which AlpacaEval fits over many models,
    cannot be told.

    Args:
        outcomes: [N] 1, 0 or -1.
        differences: [N] the candidate's answer length minus the opponent's.
        resamples: bootstrap resamples (at most `MOST_RESAMPLES` are drawn).
        confidence: probability mass of the interval.
        seed: of the bootstrap.
    """
    wins = (outcomes + 1) / 2
    spread = differences.std()
    pull = np.tanh(differences / spread) if spread > 0 else np.zeros(len(differences))
    theta, phi = fit_logistic(wins, pull, np.ones((1, len(wins))))[0]
    generator = np.random.default_rng(seed)
    drawn = []
    for start in range(0, min(resamples, MOST_RESAMPLES), CHUNK):
        size = min(CHUNK, min(resamples, MOST_RESAMPLES) - start)
        weights = generator.multinomial(len(wins), np.full(len(wins), 1 / len(wins)), size=size)  # [R, N]
        drawn.append(fit_logistic(wins, pull, weights)[:, 0])
    low, high = percentile_interval(2 * expit(np.concatenate(drawn)), confidence)
    return LengthControlled(float(2 * expit(theta)), low, high, float(phi))


def fit_logistic(wins: np.ndarray, pull: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Intercept and slope of R weighted logistic regressions, by Newton's method on the ridged likelihood.

    Args:
        wins: [N] from 0 to 1.
        pull: [N] the one regressor.
        weights: [R, N] how often each row counts.

    Returns:
        [R, 2].
    """
    found = np.zeros((len(weights), 2))
    for _ in range(NEWTON_STEPS):
        expected = expit(found[:, :1] + found[:, 1:] * pull)  # [R, N]
        missing = weights * (wins - expected)
        curvature = weights * expected * (1 - expected)
        gradient = np.stack([missing.sum(1), missing @ pull], axis=1) - RIDGE * found  # [R, 2]
        a, b, c = curvature.sum(1) + RIDGE, curvature @ pull, curvature @ pull**2 + RIDGE
        step = np.stack([c * gradient[:, 0] - b * gradient[:, 1], a * gradient[:, 1] - b * gradient[:, 0]], axis=1)
        step /= (a * c - b**2)[:, None]
        found += np.clip(step, -2, 2)  # a full step may overshoot where one side nearly always wins
        if np.abs(step).max() < 1e-10:
            break
    return found
