"""The slow, obviously correct twin of the PWS interval: draw prompts one by one, count, sort."""

import random
from collections.abc import Sequence

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
