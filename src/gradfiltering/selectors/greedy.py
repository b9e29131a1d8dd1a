"""Greedy choice by marginal gains that can only fall."""

from collections.abc import Callable

import numpy as np

FIRST_LOOK = 32  # candidates evaluated at once; doubled as long as the best is not certain


def lazy_argmax(bounds: np.ndarray, evaluate: Callable[[np.ndarray], np.ndarray]) -> tuple[int, float]:
    """The candidate of highest value, found without evaluating all of them (Minoux, 1978).

    Gains only fall, so what a candidate gained before bounds what it gains now. The candidates are evaluated from the
    highest bound down until no bound is left above the best value found.

    Args:
        bounds: [N] float64 upper bounds of the values, -inf for what cannot be chosen.
        evaluate: positions [B] -> their values [B].

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
        values = evaluate(top)
        open_bounds[top] = -np.inf
        first = int(np.argmax(values))
        if values[first] > best_value or (values[first] == best_value and top[first] < best):
            best, best_value = int(top[first]), values[first]
        look *= 2
