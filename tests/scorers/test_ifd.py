import numpy as np
import pytest

from gradfiltering.errors import UserError
from gradfiltering.requests import ResponseLosses, ResponseLossPair
from gradfiltering.scorers.ifd import IFD

RTOL = 1e-12
PLAIN = ResponseLosses("plain", 1024)


def found(given, alone, reasons=None):
    return {PLAIN: ResponseLossPair(np.asarray(given), np.asarray(alone), reasons or {})}


def test_ratio_of_perplexities(measured):
    scores = IFD("perplexity", "plain", 1024, 1.0).score(measured(2, results=found([1.0, 0.5], [1.5, 2.5])))
    np.testing.assert_allclose(scores.score, [np.exp(1.0) / np.exp(1.5), np.exp(0.5) / np.exp(2.5)], rtol=RTOL)


def test_ratio_of_losses(measured):
    scores = IFD("loss", "plain", 1024, 1.0).score(measured(2, results=found([1.0, 0.5], [1.5, 2.5])))
    np.testing.assert_allclose(scores.score, [1 / 1.5, 0.5 / 2.5], rtol=RTOL)


def test_rows_that_the_instruction_hinders_come_last_worst_at_end(measured):
    given = measured(4, results=found([1.0, 3.0, 2.0, 1.0], [1.5, 2.0, 2.0, 3.0]))
    scores = IFD("perplexity", "plain", 1024, 1.0).score(given)
    assert scores.rank.tolist() == [1, 4, 3, 2], "0.61, 2.7, 1.0, 0.14"
    np.testing.assert_allclose(scores.columns["ifd"], np.exp([-0.5, 1.0, 0.0, -2.0]), rtol=RTOL)
    assert IFD("perplexity", "plain", 1024, None).score(given).rank.tolist() == [3, 1, 2, 4]


def test_rows_without_both_losses_are_unscored_with_their_reason(measured):
    given = measured(3, results=found([1.0, np.nan, 2.0], [2.0, np.nan, 3.0], {1: "one token"}))
    scores = IFD("perplexity", "plain", 1024, 1.0).score(given)
    assert scores.example_ids.tolist() == [0, 4] and scores.unscored == [(2, "one token")]
    assert set(scores.columns) == {"ifd", "loss_given_prompt", "loss_alone"}


def test_an_error_only_when_nothing_can_be_scored(measured):
    nothing = measured(2, results=found([np.nan] * 2, [np.nan] * 2, {0: "one token", 1: "cut off"}))
    with pytest.raises(UserError, match="no row has an IFD: cut off, one token"):
        IFD("perplexity", "plain", 1024, 1.0).score(nothing)


def test_needs_both_losses_under_its_own_template():
    assert IFD("loss", "alpaca", 512, 1.0).requests == {ResponseLosses("alpaca", 512)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [(("ppl", "plain", 8, 1.0), "ratio must be one of"), (("loss", "plain", 1, 1.0), "max_tokens must be")],
)  # fmt: skip
def test_settings_out_of_range(settings, message):
    with pytest.raises(UserError, match=message):
        IFD(*settings)
