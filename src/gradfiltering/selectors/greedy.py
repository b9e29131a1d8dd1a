"""Greedy selection by marginal gains that can only fall."""

from collections.abc import Callable

import numpy as np

FIRST_CANDIDATES = 32  # evaluated at once; doubled as long as the best is not certain


def lazy_argmax(bounds: np.ndarray, evaluate: Callable[[np.ndarray], np.ndarray]) -> tuple[int, float]:
    """Find the candidate of highest value without evaluating all of them (Minoux, 1978).

    Gains only fall, so a candidate's former gain bounds its present one. The candidates are
    evaluated from the highest bound down until no bound is left above the best value.

    Args:
        bounds: [N] float64 upper bounds of the values, -inf for candidates that cannot be taken.
        evaluate: candidates [B] -> their values [B].

    Returns:
        Position and value of the best; among equals the first. The value is -inf where no candidate
        can be taken.
    """
    best_candidate, best_value = -1, -np.inf
    candidate_count = FIRST_CANDIDATES
    open_bounds = bounds.copy()
    while True:
        width = min(candidate_count, len(bounds))
        candidates = np.sort(np.argpartition(-open_bounds, width - 1)[:width])
        candidates = candidates[open_bounds[candidates] >= best_value]
        candidates = candidates[np.isfinite(open_bounds[candidates])]
        if not len(candidates):
            return best_candidate, float(best_value)
        values = evaluate(candidates)
        open_bounds[candidates] = -np.inf
        position = int(np.argmax(values))
        candidate, value = int(candidates[position]), values[position]
        if value > best_value or (value == best_value and candidate < best_candidate):
            best_candidate, best_value = candidate, value
        candidate_count *= 2
