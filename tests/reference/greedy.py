"""The slow, obviously correct twins of the greedy selectors: every gain from its definition, at every step."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np


def greedy(value: Callable[[list[int]], float], count: int, size: int) -> tuple[list[int], list[float]]:
    """Adds the element that raises `value` most, the first among equals; all elements are tried at every step."""
    chosen: list[int] = []
    gains: list[float] = []
    for _ in range(size):
        before = value(chosen)
        rest = [one for one in range(count) if one not in chosen]
        raised = [value([*chosen, one]) - before for one in rest]
        best = int(np.argmax(raised))
        chosen.append(rest[best])
        gains.append(raised[best])
    return chosen, gains


def best_subset(value: Callable[[list[int]], float], count: int, size: int) -> float:
    """The optimum over all subsets."""
    return max(value(list(some)) for some in itertools.combinations(range(count), size))


def facility_location(similarity: np.ndarray) -> Callable[[Sequence[int]], float]:
    """Sum over rows of the similarity to the nearest chosen one, 0 where none is chosen."""
    return lambda chosen: float(similarity[:, list(chosen)].max(1).sum()) if len(chosen) else 0.0


def log_volume(gradients: np.ndarray, alpha: float) -> Callable[[Sequence[int]], float]:
    """log det(I + alpha Σ g gᵀ) as a dense determinant."""

    def value(chosen: Sequence[int]) -> float:
        picked = gradients[list(chosen)].astype(np.float64)
        sign, logdet = np.linalg.slogdet(np.eye(gradients.shape[1]) + alpha * picked.T @ picked)
        assert sign > 0
        return float(logdet)

    return value
