"""The slow, obviously correct twins of the gradient scores: pure-Python loops over examples and members.

Written from the formulas of GradFiltering (arXiv 2601.13697, sec. 3), not from the code.
"""

from collections.abc import Callable, Sequence

Norms = Sequence[Sequence[float]]  # one list a member, one number an example


def mean_over_members(norms: Norms) -> list[float]:
    """G: the mean norm of each example."""
    return [sum(float(member[i]) for member in norms) / len(norms) for i in range(len(norms[0]))]


def variance_over_members(norms: Norms, ddof: int) -> list[float]:
    """V: the variance of each example's norm."""
    means = mean_over_members(norms)
    return [
        sum((float(member[i]) - means[i]) ** 2 for member in norms) / (len(norms) - ddof) for i in range(len(means))
    ]


def _each(formula: Callable[[float, float, float], float]) -> Callable[[Norms, Norms, float, int], list[float]]:
    def scores(early: Norms, late: Norms, epsilon: float, ddof: int) -> list[float]:
        g_s, g_t, v_t = mean_over_members(early), mean_over_members(late), variance_over_members(late, ddof)
        return [formula(*statistics, epsilon) for statistics in zip(g_s, g_t, v_t, strict=True)]

    return scores


gsnr = _each(lambda g_s, g_t, v_t, eps: (g_s - g_t) / (g_s + eps) * (1 / (v_t + eps)))
raw_drop = _each(lambda g_s, g_t, v_t, eps: g_s - g_t)
normalized_drop = _each(lambda g_s, g_t, v_t, eps: (g_s - g_t) / (g_s + eps))
variance_only = _each(lambda g_s, g_t, v_t, eps: (g_s - g_t) / (v_t + eps))
inverse_variance = _each(lambda g_s, g_t, v_t, eps: 1 / (v_t + eps))


def ranks(example_ids: Sequence[int], scores: Sequence[float]) -> list[int]:
    """1 = best; among equal scores the smaller example id is better."""
    result = []
    for own_id, own in zip(example_ids, scores, strict=True):
        rank = 1
        for other_id, other in zip(example_ids, scores, strict=True):
            if other > own or (other == own and other_id < own_id):
                rank += 1
        result.append(rank)
    return result


relative_variance = _each(lambda g_s, g_t, v_t, eps: v_t / (g_t * g_t + eps))
