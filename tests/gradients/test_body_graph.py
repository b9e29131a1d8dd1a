"""Recorded passes, with recording and replaying in the place of CUDA graphs: each replay computes anew.

What a GPU does with real graphs is tested in test_gpu.py.
"""

import logging

import pytest
import torch

from gradfiltering.data.batches import IGNORED, Batch
from gradfiltering.gradients import body_graph, fused
from gradfiltering.gradients.body_graph import RecordedBody
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.gradients.statistics import GradientAccumulator
from gradfiltering.models.objectives import DirectPreference, ResponseNLL
from tests.gradients.test_preference_gradients import make_pairs  # noqa: F401  # a fixture

CPU = torch.device("cpu")


@pytest.fixture
def replays(monkeypatch) -> list[str]:
    """Record on the CPU: a replay runs the body again, on what the buffers hold by then."""
    replayed = []

    def record(body, memory, run_body):
        body.run_body = run_body
        forward_pass(body, body._input_ids)  # as recording does, on whatever the buffers hold
        backward_pass(body, body._hidden_gradient)

    def forward_pass(body, input_ids):
        replayed.append("forward")
        body._input_ids.copy_(input_ids)
        body.accumulator = GradientAccumulator(body.shape.summed_parameters > 0, {})
        with torch.enable_grad():
            body.hidden = body._run_forward(body.run_body, body.accumulator)
        return body._hidden_states

    def backward_pass(body, hidden_gradient):
        replayed.append("backward")
        body._hidden_gradient.copy_(hidden_gradient)
        body._run_backward(body.hidden, body.accumulator)

    monkeypatch.setattr(fused, "can_record", lambda device: True)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    monkeypatch.setattr(body_graph, "return_unused_memory", lambda device: None)
    monkeypatch.setattr(RecordedBody, "_record", record)
    monkeypatch.setattr(RecordedBody, "forward_pass", forward_pass)
    monkeypatch.setattr(RecordedBody, "backward_pass", backward_pass)
    return replayed


def make_engine(model, objective=None, tokens=10_000):
    engine = FusedEngine(model, objective or ResponseNLL(), tokens)
    engine.to(CPU)
    return engine


def assert_equal(found, expected):
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.grad_norm, expected.grad_norm, rtol=1e-9, atol=0)
    assert (found.mean_gradient is None) == (expected.mean_gradient is None)
    for name, gradient in (expected.mean_gradient or {}).items():
        torch.testing.assert_close(found.mean_gradient[name], gradient, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("members", [None, 3], ids=["shared rows", "rows per member"])
@pytest.mark.parametrize("layers", ["all", 1], ids=["all layers", "frozen prefix"])
@pytest.mark.parametrize("tokens", [30, 10_000], ids=["several chunks", "one chunk"])
@pytest.mark.parametrize("with_mean_gradient", [True, False])
def test_replays_compute_what_single_operations_do(
    make_model,
    make_adapters,
    make_batch,
    replays,
    monkeypatch,
    architecture,
    members,
    layers,
    tokens,
    with_mean_gradient,
):
    model, adapters, _ = make_adapters(make_model(architecture), layers=layers)
    engine = make_engine(model, tokens=tokens)
    rounds = []
    for number in range(4):  # two shapes in turns, other rows and adapters each time
        rows = make_batch(
            [12, 5, 9, 7] if number % 2 else [15, 14, 13], [4, 4, 2, 3] if number % 2 else [2, 5, 9], members
        )
        shifted = (rows.input_ids + number) % 60
        batch = Batch(shifted, torch.where(rows.labels == IGNORED, IGNORED, shifted), rows.example_id)
        rounds.append(({name: value * (1 + number) for name, value in adapters.items()}, batch))
    for one_round in rounds:
        engine.measure(*one_round, with_mean_gradient)
    replays.clear()
    found = [engine.measure(*one_round, with_mean_gradient) for one_round in rounds]
    assert replays.count("forward") == replays.count("backward") >= len(rounds)
    monkeypatch.setattr(fused, "can_record", lambda device: False)
    for one_round, measured in zip(rounds, found, strict=True):
        assert_equal(measured, engine.measure(*one_round, with_mean_gradient))


@pytest.mark.parametrize("error", [RuntimeError("not permitted when stream is capturing"), torch.OutOfMemoryError()])
def test_what_cannot_be_recorded_is_computed_operation_by_operation(
    make_model, make_adapters, make_batch, replays, monkeypatch, caplog, error
):
    def fail(body, memory, run_body):
        raise error

    monkeypatch.setattr(RecordedBody, "_record", fail)
    model, adapters, _ = make_adapters(make_model())
    engine, batch = make_engine(model), make_batch([12, 5], [4, 2])
    with caplog.at_level(logging.WARNING):
        measured = [engine.measure(adapters, batch, True) for _ in range(3)]
    assert caplog.text.count("passes cannot be recorded") == 1 and not replays
    assert engine.chunk_tokens == 10_000
    assert_equal(measured[2], measured[0])


def test_statistics_of_ones_own_are_not_recorded(make_model, make_adapters, make_batch, replays):
    model, adapters, _ = make_adapters(make_model())
    engine, batch = make_engine(model), make_batch([12, 5], [4, 2])
    sums = {"sum": lambda name, gradients: gradients.flatten(2).sum(2)}
    for _ in range(3):
        measured = engine.measure(adapters, batch, True, sums)
    assert "sum" in measured.statistics and not replays


def test_pairs_of_answers(make_model, make_adapters, make_pairs, replays):  # noqa: F811
    model, adapters, _ = make_adapters(make_model())
    engine, pairs = make_engine(model, DirectPreference(0.5)), make_pairs(model)
    measured = [engine.measure(adapters, pairs, True) for _ in range(3)]
    assert replays
    assert_equal(measured[2], measured[0])


def test_no_more_shapes_are_recorded_than_allowed(make_model, make_adapters, make_batch, replays, monkeypatch):
    monkeypatch.setattr(body_graph, "MOST_GRAPHS", 2)
    model, adapters, _ = make_adapters(make_model())
    engine = make_engine(model)
    replays.clear()
    for length in (8, 9, 10, 11) * 2:
        engine.measure(adapters, make_batch([length, 5], [4, 2]), True)
    assert len(engine._recorded_bodies._bodies) == 2


def test_trials_are_not_recorded(make_model, make_adapters, make_batch, replays):
    model, adapters, _ = make_adapters(make_model())
    engine, batch = make_engine(model), make_batch([12, 5], [4, 2])
    for _ in range(3):
        with engine.on_trial():
            engine.measure(adapters, batch, True)
    assert not replays and not engine._recorded_bodies._bodies
