import numpy as np
import pytest

from gradfiltering.errors import UserError
from gradfiltering.requests import BaseModelLosses, ResponseLosses, ResponseLossPair
from gradfiltering.scorers.prompted_likelihood import PromptedLikelihood

ALONE_LOSSES = ResponseLosses("plain", 1024)


def with_losses(measured, prompted, alone, reasons=None):
    losses = ResponseLossPair(np.zeros(len(alone)), np.asarray(alone), reasons or {})
    return measured(len(prompted), losses=np.asarray(prompted), results={ALONE_LOSSES: losses})


def test_the_formula_by_hand(measured):
    """Losses rank 3, 2, 1 of 3; agreements are 0.5, -1 and 0.5, so that two share rank 2.5."""
    scores = PromptedLikelihood(0.4).score(with_losses(measured, [1.0, 2.0, 3.0], [2.0, 1.0, 6.0]))
    expected = [0.6 * 3 / 3 + 0.4 * 2.5 / 3, 0.6 * 2 / 3 + 0.4 * 1 / 3, 0.6 * 1 / 3 + 0.4 * 2.5 / 3]
    np.testing.assert_allclose(scores.score, expected, rtol=1e-12)
    assert scores.columns["agreement"].tolist() == [0.5, -1.0, 0.5]
    assert scores.columns["loss"].tolist() == [1.0, 2.0, 3.0]


def test_an_answer_to_another_question_comes_after_one_that_is_as_likely(measured):
    evidence = with_losses(measured, [1.0, 1.0, 4.0], [2.0, 1.0, 4.1])
    assert PromptedLikelihood(0.4).score(evidence).rank.tolist() == [1, 2, 3]


@pytest.mark.parametrize(("agreement", "ranks"), [(0.0, [1, 2, 3]), (1.0, [3, 2, 1])])
def test_the_weight_goes_from_likelihood_to_agreement(agreement, ranks, measured):
    evidence = with_losses(measured, [1.0, 2.0, 3.0], [1.0, 3.0, 9.0])
    assert PromptedLikelihood(agreement).score(evidence).rank.tolist() == ranks


def test_rows_without_both_losses_are_unscored_with_their_reason(measured):
    scores = PromptedLikelihood().score(with_losses(measured, [1.0, 2.0, 3.0], [2.0, np.nan, 6.0], {1: "one token"}))
    assert scores.example_ids.tolist() == [0, 4] and scores.unscored == [(2, "one token")]
    with pytest.raises(UserError, match="no row has a loss of its response alone: one token"):
        PromptedLikelihood().score(with_losses(measured, [1.0], [np.nan], {0: "one token"}))


def test_it_trains_nothing():
    assert PromptedLikelihood().requests == {BaseModelLosses(), ALONE_LOSSES}
