import numpy as np
import pytest

from gradfiltering.requests import (
    BaseModelLosses,
    EpochLog,
    ErrorNorms,
    Evidence,
    GradientLog,
    GradientLogPair,
    LossMeasurement,
    Projections,
)

pytest.register_assert_rewrite("tests.scorers.checks")

IDS = np.asarray([0, 2, 3, 7, 8, 11, 20])  # some rows were not scorable


@pytest.fixture
def measured():
    """Builds evidence of measurements of the base model."""

    def make(row_count, response_tokens=None, losses=None, error_norms=None, **results) -> Evidence:
        tokens = np.full(row_count, 4) if response_tokens is None else np.asarray(response_tokens)
        tokens = tokens.astype(np.int32)
        measurements = dict(results.get("results", {}))
        if losses is not None:
            measurements[BaseModelLosses()] = LossMeasurement(np.asarray(losses), None)
        if error_norms is not None:
            measurements[ErrorNorms()] = np.asarray(error_norms)
        return Evidence(np.arange(row_count) * 2, 0, tokens, tokens + 5, None, measurements)

    return make


@pytest.fixture
def norms():
    """[M, N] norms at the early and at the late snapshot, float32 as logged."""
    rng = np.random.default_rng(4)
    early = rng.uniform(0.5, 3.0, (5, len(IDS))).astype(np.float32)
    return early, (early * rng.uniform(0.6, 1.2, early.shape)).astype(np.float32)


@pytest.fixture
def evidence():
    """Builds evidence of a gradient log of the given norms, [M, N]."""

    def make(early, late, seed=0, losses=None, projections=None) -> Evidence:
        early, late = np.asarray(early, dtype=np.float32), np.asarray(late, dtype=np.float32)
        example_ids = IDS[: early.shape[1]]
        tokens = np.full(len(example_ids), 4, dtype=np.int32)
        losses = np.ones((2, *early.shape)) if losses is None else np.asarray(losses)
        logs = GradientLogPair(
            EpochLog(example_ids, early, losses[0].astype(np.float32), tokens),
            EpochLog(example_ids, late, losses[1].astype(np.float32), tokens),
        )
        results = {GradientLog(): logs}
        if projections is not None:
            results[Projections()] = np.asarray(projections, dtype=np.float32)
        return Evidence(example_ids, seed, tokens, tokens + 5, None, results)

    return make
