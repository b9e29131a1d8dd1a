import numpy as np
import pytest

from gradfiltering.errors import UserError
from gradfiltering.requests import RowTokens
from gradfiltering.scorers.base import Scores
from gradfiltering.selectors.deduplicated import DeduplicatedSelector, token_shingles
from gradfiltering.selectors.random import RandomSelector
from gradfiltering.selectors.top import TopSelector

IDS = np.arange(6) * 2


@pytest.fixture
def rows():
    """Six rows of 200 tokens: 1 is a copy of 0, 3 is 2 with one token changed, 4 and 5 stand alone."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 1000, 200) for _ in range(6)]
    rows[1] = rows[0].copy()
    rows[3] = rows[2].copy()
    rows[3][100] = 5
    return [row.tolist() for row in rows]


def make(inner=None, threshold=0.8):
    return DeduplicatedSelector(None, 4, inner or TopSelector(None, 4), threshold, 128, 3)


def test_of_near_duplicates_the_higher_score_stays(rows, evidence):
    scores = Scores(IDS, np.asarray([1.0, 2.0, 9.0, 3.0, 0.5, 0.1]))
    found = make().select(evidence(IDS, row_tokens=rows), 6, scores)
    assert found.example_ids == [2, 4, 8, 10] and found.facts["near_duplicates"] == 2


def test_without_scores_the_earlier_row_stays(rows, evidence):
    found = make(RandomSelector(None, 4)).select(evidence(IDS, row_tokens=rows), 6, None)
    assert found.example_ids == [0, 4, 8, 10]


def test_a_threshold_of_one_takes_copies_only(rows, evidence):
    scores = Scores(IDS, np.arange(6.0))
    found = make(threshold=1.0).select(evidence(IDS, row_tokens=rows), 6, scores)
    assert found.facts["near_duplicates"] == 1


def test_too_few_rows_left_is_told(rows, evidence):
    selector = make(RandomSelector(None, 4))
    found = selector.select(evidence(IDS[:3], row_tokens=rows[:3]), 6, None)
    assert len(found.example_ids) == 2 and "1 near-duplicates were left out" in found.stopped


def test_rows_that_no_score_was_found_for_are_no_near_duplicates(rows, evidence):
    found = make(RandomSelector(None, 4)).select(evidence(IDS[1:3], row_tokens=rows[1:3]), 6, None)
    assert len(found.example_ids) == 2 and found.facts["near_duplicates"] == 0 and found.stopped is None


def test_shingles():
    assert len(token_shingles([1, 2, 3, 1, 2, 3], 3)) == 3 and len(token_shingles([1, 2], 3)) == 1


def test_settings_and_needs():
    assert make().requests == {RowTokens()} and make().uses_scores
    with pytest.raises(UserError, match="inner is to select 3 rows and the whole 4"):
        make(TopSelector(None, 3)).budget_rows(10)
    with pytest.raises(UserError, match="threshold must be"):
        make(threshold=0.0)
    with pytest.raises(UserError, match="permutations must be a whole number of at least 64"):
        DeduplicatedSelector(None, 4, TopSelector(None, 4), 0.8, 8, 3)
    DeduplicatedSelector(None, 4, TopSelector(None, 4), 1.0, 64, 3).distinct_rows([[1], [2]], np.asarray([0]))
