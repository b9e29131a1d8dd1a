"""Requests are measured once, in stages, by measurers of this project and of other packages."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from gradfiltering.errors import UserError
from gradfiltering.evidence import measurers
from gradfiltering.evidence.measurers import Measurer, load_measurers, measure_evidence, sort_requests
from gradfiltering.requests import (
    BaseModelLosses,
    Embeddings,
    ErrorNorms,
    GradientLog,
    Projections,
    Request,
    RowTokens,
    TaskGradients,
)


@dataclass(frozen=True)
class RowLengths(Request[np.ndarray]):
    """Number of tokens of each row: evidence of another package."""

    scale: float = 1.0


class RowLengthMeasurer(Measurer[RowLengths]):
    request_type = RowLengths
    calls = 0

    def measure(self, request, context):
        type(self).calls += 1
        return context.examples.lengths * request.scale


@pytest.fixture
def outside_package(monkeypatch):
    """An installed package that names a measurer of its own."""
    entry_point = EntryPoint("row_lengths", f"{__name__}:RowLengthMeasurer", measurers.ENTRY_POINT_GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: RowLengthMeasurer)
    monkeypatch.setattr(measurers, "entry_points", lambda group: [entry_point])
    load_measurers.cache_clear()
    RowLengthMeasurer.calls = 0
    yield
    load_measurers.cache_clear()


def test_requests_bring_related_ones_in_the_order_of_measuring():
    task_gradients = TaskGradients((1,), 1, None, None)
    stages = sort_requests({task_gradients, GradientLog(), Projections(), Projections(1), ErrorNorms()})
    assert stages == {
        "base_model_passes": [BaseModelLosses(), ErrorNorms()],
        "proxy": [Projections(1), Projections(), GradientLog()],
        "influence": [task_gradients],
    }


def test_only_requested_evidence_is_measured(base_model, rows, make_context):
    context = make_context(base_model, rows)
    evidence = measure_evidence({ErrorNorms()}, context)
    assert evidence.results.keys() == {ErrorNorms()}
    np.testing.assert_array_equal(evidence.example_ids, context.examples.example_ids)
    with pytest.raises(LookupError, match="Embeddings"):
        evidence.get(Embeddings())


def test_existing_results_are_not_measured_again(base_model, rows, make_context):
    context = make_context(base_model, rows)
    evidence = measure_evidence({RowTokens()}, context).add_results({ErrorNorms(): "measured before"})
    evidence = measure_evidence({ErrorNorms(), RowTokens()}, context, evidence)
    assert evidence.get(ErrorNorms()) == "measured before"


def test_stages_are_announced_with_their_requests(base_model, rows, make_context):
    stages = []

    def run_stage(name, function, *args):
        stages.append(name)
        return function(*args)

    measure_evidence({RowTokens(), ErrorNorms()}, make_context(base_model, rows), run_stage=run_stage)
    assert stages == ["base_model_passes"]


def test_another_package_measures_its_own_request_once(outside_package, base_model, rows, make_context):
    context = make_context(base_model, rows)
    evidence = measure_evidence([RowLengths(), RowLengths(), RowLengths(2.0)], context)
    np.testing.assert_array_equal(evidence.get(RowLengths(2.0)), 2 * evidence.get(RowLengths()))
    assert RowLengthMeasurer.calls == 2, "equal requests are measured once"


def test_a_request_that_nothing_measures_is_refused():
    with pytest.raises(UserError, match=r"nothing measures RowLengths.*gradfiltering\.measurers"):
        sort_requests({RowLengths()})
