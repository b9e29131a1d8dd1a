import numpy as np
import pytest

from gradfiltering.scorers.base import Scores
from gradfiltering.selectors.top import TopSelector


def brute_force(scores, size):
    pairs = sorted(zip(-scores.score, scores.example_ids.tolist(), strict=True))
    return sorted(example_id for _, example_id in pairs[:size])


@pytest.mark.parametrize("fraction", [0.04, 0.2, 0.5, 1.0])
def test_takes_the_best_share_of_all_rows(fraction, ids, scores):
    chosen = TopSelector(fraction, None).select(ids, 25, scores, 0)
    assert chosen == brute_force(scores, min(round(fraction * 25), len(ids)))
    outside = np.setdiff1d(ids, chosen)
    inside = np.isin(ids, chosen)
    assert len(outside) == 0 or scores.score[inside].min() >= scores.score[~inside].max()


def test_count(ids, scores):
    assert TopSelector(None, 7).select(ids, 25, scores, 0) == brute_force(scores, 7)


def test_ties_go_to_the_smaller_example_id(ids):
    flat = Scores(ids, np.where(np.arange(len(ids)) == 15, 1.0, 0.0))
    assert TopSelector(None, 4).select(ids, 25, flat, 0) == sorted([*ids[:3].tolist(), int(ids[15])])


def test_the_seed_does_not_matter(ids, scores):
    selector = TopSelector(0.2, None)
    assert selector.select(ids, 25, scores, 0) == selector.select(ids, 25, scores, 1)
    assert selector.needs == {"scores"}
