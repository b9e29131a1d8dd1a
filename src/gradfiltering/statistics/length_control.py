"""PWS with the pull of answer length removed (after Dubois et al., 2024, AlpacaEval)."""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from gradfiltering.statistics.intervals import percentile_interval, single_outcome_interval

RIDGE = 0.01  # keeps both coefficients finite where one side always wins
NEWTON_STEPS = 25
MAX_RESAMPLES = 1000  # a refit costs more than a recount, and an interval needs no more than these
RESAMPLES_AT_ONCE = 100


@dataclass(frozen=True)
class LengthControlled:
    """A pairwise winning score without the pull of length.

    Attributes:
        value: from 0 to 2; 1 = as good as the opponent.
        low: lower end of the percentile bootstrap interval; where all outcomes are the same, of the
            multinomial's bound.
        high: upper end of it.
        length_effect: coefficient of the length difference; positive when longer answers win.
    """

    value: float
    low: float
    high: float
    length_effect: float


def length_controlled(
    outcomes: np.ndarray,
    length_differences: np.ndarray,
    resamples: int,
    confidence: float,
    seed: int,
) -> LengthControlled:
    r"""Fit \(P(\text{win}) = \sigma(\theta + \phi \tanh(d / s_d))\); PWS at d = 0 is \(2\sigma(\theta)\).

    d is the difference of lengths and s_d its standard deviation; a tie counts as half a win, as it
    does in PWS. With one opponent and one judgement per prompt the difficulty of single prompts,
    which AlpacaEval fits over many models, cannot be told.

    Args:
        outcomes: [N] 1, 0 or -1.
        length_differences: [N] the candidate's answer length minus the opponent's.
        resamples: bootstrap resamples (at most `MAX_RESAMPLES` are drawn).
        confidence: probability mass of the interval.
        seed: of the bootstrap.
    """
    wins = (outcomes + 1) / 2
    row_count, spread = len(wins), length_differences.std()
    length_pull = np.tanh(length_differences / spread) if spread > 0 else np.zeros(row_count)
    theta, phi = fit_logistic(wins, length_pull, np.ones((1, row_count)))[0]
    rng = np.random.default_rng(seed)
    drawn_thetas = []
    for start in range(0, min(resamples, MAX_RESAMPLES), RESAMPLES_AT_ONCE):
        draw_count = min(RESAMPLES_AT_ONCE, min(resamples, MAX_RESAMPLES) - start)
        row_shares = np.full(row_count, 1 / row_count)
        row_weights = rng.multinomial(row_count, row_shares, size=draw_count)  # [R, N]
        drawn_thetas.append(fit_logistic(wins, length_pull, row_weights)[:, 0])
    low, high = percentile_interval(2 * expit(np.concatenate(drawn_thetas)), confidence)
    if np.ptp(outcomes) == 0:  # every resample was the same
        low, high = single_outcome_interval(float(outcomes[0]) + 1, row_count, 0.0, 2.0, confidence)
    return LengthControlled(float(2 * expit(theta)), low, high, float(phi))


def fit_logistic(wins: np.ndarray, length_pull: np.ndarray, row_weights: np.ndarray) -> np.ndarray:
    """Fit R weighted logistic regressions by Newton's method on the ridged likelihood, at once.

    Args:
        wins: [N] from 0 to 1.
        length_pull: [N] the one regressor.
        row_weights: [R, N] how often each row counts.

    Returns:
        [R, 2] intercept and slope.
    """
    coefficients = np.zeros((len(row_weights), 2))
    for _ in range(NEWTON_STEPS):
        win_chance = expit(coefficients[:, :1] + coefficients[:, 1:] * length_pull)  # [R, N]
        residuals = row_weights * (wins - win_chance)
        curvature = row_weights * win_chance * (1 - win_chance)
        gradient = np.stack([residuals.sum(1), residuals @ length_pull], axis=1)
        gradient -= RIDGE * coefficients  # [R, 2]
        # The Hessian [[a, b], [b, c]] is inverted by hand.
        a, b = curvature.sum(1) + RIDGE, curvature @ length_pull
        c = curvature @ length_pull**2 + RIDGE
        intercept_step = c * gradient[:, 0] - b * gradient[:, 1]
        slope_step = a * gradient[:, 1] - b * gradient[:, 0]
        newton_step = np.stack([intercept_step, slope_step], axis=1) / (a * c - b**2)[:, None]
        # A full step may overshoot where one side nearly always wins.
        coefficients += np.clip(newton_step, -2, 2)
        if np.abs(newton_step).max() < 1e-10:
            break
    return coefficients
