"""Greedy choice by marginal gains that can only fall."""

from collections.abc import Callable

import numpy as np

FIRST_LOOK = 32  # candidates evaluated at once; doubled as long as the best is not certain

Evaluate = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def lazy_argmax(bounds: np.ndarray, evaluate: Evaluate) -> tuple[int, float]:
    """The candidate of highest value, found without evaluating all of them (Minoux, 1978).

    A candidate's value is at most its gain, and its gain at most what it was before, since gains only fall. So the
    candidates are evaluated from the highest bound down until no bound is left above the best value found.

    Args:
        bounds: [N] float64 upper bounds of the gains, -inf for what cannot be chosen. Lowered in place to the gains of
            the candidates that were looked at.
        evaluate: positions [B] -> their gains [B] and values [B], value <= gain.

    Returns:
        Position and value of the best; among equals the first. The value is -inf where nothing can be chosen.
    """
    best, best_value = -1, -np.inf
    look = FIRST_LOOK
    open_bounds = bounds.copy()
    while True:
        width = min(look, len(bounds))
        top = np.sort(np.argpartition(-open_bounds, width - 1)[:width])
        top = top[open_bounds[top] >= best_value]
        top = top[np.isfinite(open_bounds[top])]
        if not len(top):
            return best, float(best_value)
        gains, values = evaluate(top)
        bounds[top] = gains
        open_bounds[top] = -np.inf
        first = int(np.argmax(values))
        if values[first] > best_value or (values[first] == best_value and top[first] < best):
            best, best_value = int(top[first]), values[first]
        look *= 2
