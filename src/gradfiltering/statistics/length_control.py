"""PWS with the pull of answer length removed (after Dubois et al., 2024, AlpacaEval)."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import scipy

from gradfiltering.statistics.intervals import percentile_interval, single_outcome_interval

LengthForm = Literal["tanh", "log_ratio"]
LENGTH_FORMS: tuple[LengthForm, ...] = get_args(LengthForm)
RIDGE = 0.01  # keeps the coefficients finite where one side always wins
NEWTON_STEPS = 25
MAX_RESAMPLES = 1000  # a refit costs more than a recount, and an interval needs no more than these
RESAMPLES_AT_ONCE = 100


@dataclass(frozen=True)
class LengthControlled:
    """A pairwise winning score without the pull of length.

    Attributes:
        value: from 0 to 2; 1 = as good as the baseline.
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
    lengths: np.ndarray,
    prompt_sets: np.ndarray,
    form: LengthForm,
    resamples: int,
    confidence: float,
    seed: int,
) -> LengthControlled:
    r"""Fit \(P(\text{win}) = \sigma(\theta_k + \phi x)\) with an intercept for each prompt set k.

    The regressor x is \(\tanh(d / s_d)\), d the difference of lengths and \(s_d\) its standard deviation, or the
    logarithm of the ratio of lengths (each plus 1). How much of a lead is length depends on the form, so both are
    reported. PWS at x = 0 is \(2\sigma(\theta_k)\), averaged over the prompts; a tie counts as half a win, as it does
    in PWS. With one baseline and one judgement per prompt the difficulty of single prompts, which AlpacaEval fits over
    many models, cannot be told.

    Args:
        outcomes: [N] 1, 0 or -1.
        lengths: [N, 2] lengths of the candidate's and the baseline's answers.
        prompt_sets: [N] name or number of each prompt's set.
        form: of the regressor.
        resamples: bootstrap resamples (at most `MAX_RESAMPLES` are drawn), of the prompts of each set.
        confidence: probability mass of the interval.
        seed: of the bootstrap.
    """
    wins, length_pull = (outcomes + 1) / 2, measure_length_pull(lengths, form)
    set_rows, set_sizes = np.unique(prompt_sets, return_inverse=True, return_counts=True)[1:]
    in_set = (set_rows == np.arange(len(set_sizes))[:, None]).astype(float)  # [K, N]
    set_shares = set_sizes / set_sizes.sum()

    def score_without_length(intercepts: np.ndarray) -> np.ndarray:
        scores: np.ndarray = 2 * scipy.special.expit(intercepts) @ set_shares  # [R, K] -> [R]
        return scores

    intercepts, slopes = fit_logistic(wins, length_pull, in_set, np.ones((1, len(wins))))
    rng, drawn_scores = np.random.default_rng(seed), []
    for start in range(0, min(resamples, MAX_RESAMPLES), RESAMPLES_AT_ONCE):
        draw_count = min(RESAMPLES_AT_ONCE, min(resamples, MAX_RESAMPLES) - start)
        row_weights = np.zeros((draw_count, len(wins)))
        for members, set_size in zip(in_set.astype(bool), set_sizes.tolist(), strict=True):
            row_weights[:, members] = rng.multinomial(set_size, np.full(set_size, 1 / set_size), size=draw_count)
        drawn_scores.append(score_without_length(fit_logistic(wins, length_pull, in_set, row_weights)[0]))
    low, high = percentile_interval(np.concatenate(drawn_scores), confidence)
    if np.ptp(outcomes) == 0:  # every resample was the same
        low, high = single_outcome_interval(float(outcomes[0]) + 1, len(wins), 0.0, 2.0, confidence)
    return LengthControlled(float(score_without_length(intercepts)[0]), low, high, float(slopes[0]))


def measure_length_pull(lengths: np.ndarray, form: LengthForm) -> np.ndarray:
    """Compute the regressor of each pair of answers, [N, 2] lengths -> [N]; 0 for answers of like length."""
    length_pull: np.ndarray
    if form == "log_ratio":
        logarithms = np.log1p(lengths)
        length_pull = logarithms[:, 0] - logarithms[:, 1]
    else:
        differences = lengths[:, 0] - lengths[:, 1]
        spread = differences.std()
        length_pull = np.tanh(differences / spread) if spread > 0 else np.zeros(len(differences))
    return length_pull


def fit_logistic(
    wins: np.ndarray, length_pull: np.ndarray, in_set: np.ndarray, row_weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fit R weighted logistic regressions by Newton's method on the ridged likelihood, at once.

    Args:
        wins: [N] from 0 to 1.
        length_pull: [N] the one regressor.
        in_set: [K, N] 1 where a row is of a set, each row of one.
        row_weights: [R, N] how often each row counts.

    Returns:
        [R, K] an intercept for each set, and [R] the slope.
    """
    intercepts, slopes = np.zeros((len(row_weights), len(in_set))), np.zeros((len(row_weights), 1))
    for _ in range(NEWTON_STEPS):
        win_chance = scipy.special.expit(intercepts @ in_set + slopes * length_pull)  # [R, N]
        residuals = row_weights * (wins - win_chance)
        curvature = row_weights * win_chance * (1 - win_chance)
        intercept_gradient = residuals @ in_set.T - RIDGE * intercepts  # [R, K]
        slope_gradient = (residuals @ length_pull)[:, None] - RIDGE * slopes  # [R, 1]
        # The Hessian is diagonal but for its last row and column, so Schur's complement inverts it.
        diagonal, border = curvature @ in_set.T + RIDGE, (curvature * length_pull) @ in_set.T  # [R, K] each
        corner = (curvature @ length_pull**2)[:, None] + RIDGE  # [R, 1]
        complement = corner - (border**2 / diagonal).sum(1, keepdims=True)
        slope_step = slope_gradient - (border * intercept_gradient / diagonal).sum(1, keepdims=True)
        slope_step /= complement
        intercept_step = (intercept_gradient - border * slope_step) / diagonal
        # A full step may overshoot where one side nearly always wins.
        intercepts += np.clip(intercept_step, -2, 2)
        slopes += np.clip(slope_step, -2, 2)
        if max(np.abs(intercept_step).max(), np.abs(slope_step).max()) < 1e-10:
            break
    return intercepts, slopes[:, 0]
