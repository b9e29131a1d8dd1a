import numpy as np
import pytest

from gradfiltering.errors import UserError
from gradfiltering.requests import FileScores
from gradfiltering.scorers.from_file import NOT_LISTED, FileScorer

REQUEST = FileScores("chosen.jsonl", "score")


def test_rows_that_the_file_does_not_list_get_no_score(measured):
    given = measured(4, results={REQUEST: np.asarray([0.5, np.nan, -1.0, np.nan])})
    scorer = FileScorer("chosen.jsonl")
    assert scorer.requests == {REQUEST}
    scores = scorer.score(given)
    assert scores.example_ids.tolist() == [0, 4] and scores.score.tolist() == [0.5, -1.0]
    assert scores.unscored == [(2, NOT_LISTED), (6, NOT_LISTED)]


def test_a_file_of_rows_that_cannot_be_trained_on_is_refused(measured):
    with pytest.raises(UserError, match=r"no row of chosen\.jsonl can be trained on"):
        FileScorer("chosen.jsonl").score(measured(2, results={REQUEST: np.full(2, np.nan)}))
