import numpy as np
import pytest
from datasets import Dataset

from gradfiltering.data.examples import Examples
from gradfiltering.ensembles.snapshots import SnapshotPair
from gradfiltering.evidence.base_model import Observed
from gradfiltering.runs.gradient_log import EpochLog, GradientLog, write_epoch
from gradfiltering.scorers.base import Evidence

pytest.register_assert_rewrite("tests.scorers.checks")

EARLY, LATE = 1, 3
IDS = np.asarray([0, 2, 3, 7, 8, 11, 20])  # some rows were not scorable


def examples_of(response_tokens, ids=None) -> Examples:
    """Examples of which only the response's length is known."""
    tokens = np.asarray(response_tokens, dtype=np.int32)
    ids = np.arange(len(tokens)) if ids is None else np.asarray(ids)
    return Examples(Dataset.from_dict({"example_id": ids}), ids, tokens + 5, tokens, 0, [])


@pytest.fixture
def bare():
    """Builds evidence of what the bare backbone showed."""

    def make(count, response_tokens=None, **observed) -> Evidence:
        ids = np.arange(count) * 2
        examples = None if response_tokens is None else examples_of(response_tokens, ids)
        return Evidence(ids, 0, SnapshotPair(EARLY, LATE), None, Observed(**observed), examples=examples)

    return make


@pytest.fixture
def norms():
    """[M, N] norms at the early and at the late epoch, float32 as logged."""
    rng = np.random.default_rng(4)
    early = rng.uniform(0.5, 3.0, (5, len(IDS))).astype(np.float32)
    return early, (early * rng.uniform(0.6, 1.2, early.shape)).astype(np.float32)


@pytest.fixture
def evidence(tmp_path):
    """Builds evidence over a real gradient log of the given norms."""

    def make(early, late, seed=0, name="log", losses=None, projections=None) -> Evidence:
        early, late = np.asarray(early, dtype=np.float32), np.asarray(late, dtype=np.float32)
        ids = IDS[: early.shape[1]]
        tokens = np.full(len(ids), 4, dtype=np.int32)
        losses = np.ones((2, *early.shape), dtype=np.float32) if losses is None else np.float32(losses)
        for epoch, norm, loss in ((EARLY, early, losses[0]), (LATE, late, losses[1])):
            write_epoch(tmp_path / name, EpochLog(ids, norm, loss, tokens), range(len(norm)), epoch)
        log = GradientLog(tmp_path / name)
        made = None if projections is None else np.asarray(projections, dtype=np.float32)
        return Evidence(ids, seed, SnapshotPair(EARLY, LATE), log, projections=made, examples=examples_of(tokens, ids))

    return make
