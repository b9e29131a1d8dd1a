import numpy as np
import pytest

from gradfiltering.scorers.base import Scores
from gradfiltering.selectors.top import TopSelector


def brute_force(scores, size):
    pairs = sorted(zip(-scores.score, scores.example_ids.tolist(), strict=True))
    return sorted(example_id for _, example_id in pairs[:size])


@pytest.mark.parametrize("fraction", [0.04, 0.2, 0.5, 1.0])
def test_takes_the_best_share_of_all_rows(fraction, ids, scores, evidence):
    chosen = TopSelector(fraction, None).select(evidence(ids, 0), 25, scores).example_ids
    assert chosen == brute_force(scores, min(int(fraction * 25 + 0.5), len(ids)))
    outside = np.setdiff1d(ids, chosen)
    inside = np.isin(ids, chosen)
    assert len(outside) == 0 or scores.score[inside].min() >= scores.score[~inside].max()


def test_count(ids, scores, evidence):
    assert TopSelector(None, 7).select(evidence(ids, 0), 25, scores).example_ids == brute_force(scores, 7)


def test_ties_go_to_the_smaller_example_id(ids, evidence):
    flat = Scores(ids, np.where(np.arange(len(ids)) == 15, 1.0, 0.0))
    assert TopSelector(None, 4).select(evidence(ids, 0), 25, flat).example_ids == sorted(
        [*ids[:3].tolist(), int(ids[15])]
    )


def test_the_seed_does_not_matter(ids, scores, evidence):
    selector = TopSelector(0.2, None)
    assert (
        selector.select(evidence(ids, 0), 25, scores).example_ids
        == selector.select(evidence(ids, 1), 25, scores).example_ids
    )
    assert selector.requests == frozenset() and selector.uses_scores
