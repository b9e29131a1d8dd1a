from dataclasses import fields

import numpy as np
import pytest

from gradfiltering.requests import (
    BaseModelLosses,
    CheckpointGradients,
    Embeddings,
    EpochLog,
    ErrorNorms,
    Evidence,
    GradientLog,
    GradientLogPair,
    LossMeasurement,
    Projections,
    ResponseLosses,
    ResponseLossPair,
    RowTokens,
    TaskGradients,
)

IDS, VALUES = np.asarray([0, 2, 3, 9]), np.arange(4.0)
LOSSES, GRADIENTS = ResponseLosses("plain", 8), TaskGradients((1,), 1, None, None)


def snapshot_log(norms):
    return EpochLog(IDS, np.asarray(norms), np.asarray(norms) + 1, np.arange(4))


@pytest.fixture
def evidence():
    gradients = CheckpointGradients([[VALUES[:, None]]], [[np.ones((2, 1))]], np.asarray(["all"] * 2), [1.0], {})
    results = {
        BaseModelLosses(): LossMeasurement(VALUES, 7.0),
        ErrorNorms(): VALUES * 2,
        Embeddings(): VALUES[:, None],
        Projections(): np.arange(8.0).reshape(2, 4, 1),
        LOSSES: ResponseLossPair(VALUES, VALUES + 1, {1: "cut", 3: "short"}),
        GRADIENTS: gradients,
        GradientLog(): GradientLogPair(snapshot_log([VALUES]), snapshot_log([VALUES * 3])),
        RowTokens(): [[0], [1, 1], [2], [3, 3, 3]],
    }
    return Evidence(IDS, 0, np.arange(4), np.arange(4) + 5, np.asarray(list("abab")), results)


def test_evidence_about_some_rows_is_about_them(evidence):
    some = evidence.select_rows([9, 0])
    assert some.example_ids.tolist() == [0, 9] and some.sources.tolist() == ["a", "b"]
    assert some.response_tokens.tolist() == [0, 3] and some.token_counts.tolist() == [5, 8]
    assert some.get(BaseModelLosses()).row_losses.tolist() == [0, 3]
    assert some.get(BaseModelLosses()).heldout_loss == 7.0
    assert some.get(ErrorNorms()).tolist() == [0, 6]
    assert some.get(Embeddings()).tolist() == [[0], [3]]
    assert some.get(Projections()).tolist() == [[[0], [3]], [[4], [7]]]
    assert some.get(LOSSES).missing_reasons == {1: "short"}
    assert some.get(LOSSES).alone.tolist() == [1, 4]
    assert some.get(GRADIENTS).row_directions[0][0].tolist() == [[0], [3]]
    assert len(some.get(GRADIENTS).validation_gradients[0][0]) == 2
    logs = some.get(GradientLog())
    assert logs.early.example_ids.tolist() == [0, 9] and logs.late.grad_norm.tolist() == [[0, 9]]
    assert list(some.get(RowTokens())) == [[0], [3, 3, 3]]


def test_rows_can_be_selected_twice(evidence):
    some = evidence.select_rows([2, 3, 9]).select_rows([9, 3])
    assert some.example_ids.tolist() == [3, 9] and some.get(ErrorNorms()).tolist() == [4, 6]
    assert list(some.get(RowTokens())[1:]) == [[3, 3, 3]]


def test_a_result_that_was_not_measured_is_an_error(evidence):
    with pytest.raises(LookupError, match=r"max_tokens=9.* must list it in `requests`"):
        evidence.get(ResponseLosses("plain", 9))


def test_results_are_added_without_changing_the_evidence(evidence):
    more = evidence.add_results({ErrorNorms(): VALUES})
    assert more.get(ErrorNorms())[3] == 3 and evidence.get(ErrorNorms())[3] == 6


def test_members_can_be_selected_more_than_once():
    log = snapshot_log([VALUES, VALUES * 2]).select_members(np.asarray([1, 1, 0]))
    assert log.grad_norm[:, 1].tolist() == [2, 2, 1] and log.loss[:, 1].tolist() == [3, 3, 2]


def test_requests_of_different_kinds_differ():
    plain_requests = {GradientLog(), Projections(), BaseModelLosses(), ErrorNorms(), Embeddings()}
    assert len(plain_requests) == 5 and GradientLog() in plain_requests


def test_a_scorer_cannot_see_the_planted_kinds():
    """Evidence is all that a scorer gets; a field with the truth would let it cheat."""
    assert {field.name for field in fields(Evidence)} == {
        "example_ids", "seed", "response_tokens", "token_counts", "sources", "results", "row_indices",
    }  # fmt: skip
