"""The slow, obviously correct twins of intervals: draw, compute anew, sort."""

import random
from collections.abc import Sequence

import numpy as np
from scipy.stats import mannwhitneyu

POINTS = {"win": 1, "tie": 0, "loss": -1}


def bootstrap_interval(verdicts: Sequence[str], resamples: int, confidence: float, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of (wins - losses) / judged + 1 over judged prompts."""
    judged = [verdict for verdict in verdicts if verdict != "unparsed"]
    rng = random.Random(seed)
    scores = []
    for _ in range(resamples):
        drawn = [judged[rng.randrange(len(judged))] for _ in judged]
        scores.append(sum(POINTS[verdict] for verdict in drawn) / len(drawn) + 1)
    scores.sort()
    tail = (1 - confidence) / 2
    return scores[round(tail * (resamples - 1))], scores[round((1 - tail) * (resamples - 1))]


def resampled_auc(
    score: np.ndarray, positive: np.ndarray, resamples: int, confidence: float, rng: np.random.Generator
) -> tuple[float, float]:
    """Percentile bootstrap interval of the AUC: rows drawn within each class, the AUC by the rank-sum statistic."""
    above, below = score[positive], score[~positive]
    values = []
    for _ in range(resamples):
        drawn = rng.choice(above, len(above)), rng.choice(below, len(below))
        values.append(mannwhitneyu(*drawn).statistic / (len(above) * len(below)))
    return tuple(np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2]))
