import numpy as np
import pytest

from gradfiltering.ensembles.snapshots import SnapshotPair
from gradfiltering.evidence.base_model import Observed
from gradfiltering.scorers.base import Evidence, Scores

TOTAL = 25
IDS = np.asarray([position for position in range(TOTAL) if position % 6 != 4])  # four rows are unscored


@pytest.fixture
def ids():
    return IDS


@pytest.fixture
def scores():
    return Scores(IDS, np.random.default_rng(1).normal(size=len(IDS)))


@pytest.fixture
def evidence():
    """Builds evidence about the rows of given ids."""

    def make(example_ids, seed=0, embeddings=None, projections=None, **more) -> Evidence:
        observed = Observed(embeddings=None if embeddings is None else np.asarray(embeddings, dtype=np.float32))
        made = None if projections is None else np.asarray(projections, dtype=np.float32)
        ids = np.asarray(example_ids, dtype=np.int64)
        return Evidence(ids, seed, SnapshotPair(1, 2), None, observed, made, **more)

    return make
