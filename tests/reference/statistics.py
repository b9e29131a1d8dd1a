"""Slow, obviously correct twins of the judging statistics."""

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from scipy import optimize


def bca_interval(values: Sequence[float], resamples: int, confidence: float, seed: int) -> tuple[float, float]:
    """BCa of the mean: resample value by value, leave out each value in turn for the acceleration."""
    rng, normal, n = random.Random(seed), NormalDist(), len(values)
    mean = sum(values) / n
    means = sorted(sum(rng.choices(values, k=n)) / n for _ in range(resamples))
    below = sum(1.0 if one < mean - 1e-12 else 0.5 if one <= mean + 1e-12 else 0.0 for one in means) / resamples
    left_out = [(sum(values) - value) / (n - 1) for value in values]
    centre = sum(left_out) / n
    cubes, squares = sum((centre - one) ** 3 for one in left_out), sum((centre - one) ** 2 for one in left_out)
    acceleration = cubes / (6 * squares**1.5)
    bias, ends = normal.inv_cdf(below), []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        z = bias + normal.inv_cdf(tail)
        ends.append(means[round(normal.cdf(bias + z / (1 - acceleration * z)) * (resamples - 1))])
    return ends[0], ends[1]


def sign_test(wins: int, losses: int) -> float:
    """Add up the chance of every outcome that is at most as likely as what was seen."""
    n = wins + losses
    chances = [math.comb(n, k) / 2**n for k in range(n + 1)]
    return min(1.0, sum(chance for chance in chances if chance <= chances[wins] * (1 + 1e-12)))


def logistic(wins: np.ndarray, pull: np.ndarray, ridge: float, sets: np.ndarray) -> np.ndarray:
    """Intercept of each set and slope, by a general minimiser of the ridged negative log-likelihood."""
    names, set_numbers = np.unique(sets, return_inverse=True)

    def loss(coefficients):
        score = coefficients[set_numbers] + coefficients[-1] * pull
        return (np.logaddexp(0, score) - wins * score).sum() + ridge * (coefficients**2).sum() / 2

    return optimize.minimize(loss, np.zeros(len(names) + 1), method="BFGS", options={"gtol": 1e-9}).x


def cohen_kappa(one: Sequence[str], other: Sequence[str]) -> float:
    """Agreement beyond chance of two raters: count, pair by pair of categories."""
    n = len(one)
    seen = sum(a == b for a, b in zip(one, other, strict=True)) / n
    chance = sum(Counter(one)[name] * Counter(other)[name] for name in set(one) | set(other)) / n**2
    return (seen - chance) / (1 - chance)


def fleiss_kappa(ratings: Sequence[Sequence[str]]) -> float:
    """Agreement beyond chance of several raters: compare every two ratings of every subject."""
    agreeing = [sum(a == b for a, b in itertools.permutations(row, 2)) / (len(row) * (len(row) - 1)) for row in ratings]
    everything = [name for row in ratings for name in row]
    chance = sum((everything.count(name) / len(everything)) ** 2 for name in set(everything))
    return (sum(agreeing) / len(agreeing) - chance) / (1 - chance)
