import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradfiltering.errors import UserError
from gradfiltering.scorers.base import Scores
from tests.reference import scores as reference


@given(st.lists(st.sampled_from([-1.5, -0.0, 0.0, 0.25, 1e300]), min_size=1, max_size=12))
def test_ranks_break_ties_by_example_id(values):
    ids = np.arange(len(values)) * 3 + 1
    scores = Scores(ids, np.asarray(values))
    assert scores.rank.dtype == np.int64
    assert scores.rank.tolist() == reference.ranks(ids.tolist(), values)
    assert [scores.rank[position] for position in scores.order] == list(range(1, len(values) + 1))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(value):
    with pytest.raises(UserError, match=r"2 scores are not finite, first at rows \[5, 9\]"):
        Scores(np.asarray([2, 5, 9]), np.asarray([1.0, value, value]))
