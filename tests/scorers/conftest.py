import numpy as np
import pytest

from gradfiltering.proxy.log import EpochLog, EpochPair, GradientLog, write_epoch
from gradfiltering.scorers.base import Evidence

pytest.register_assert_rewrite("tests.scorers.checks")

EARLY, LATE = 1, 3
IDS = np.asarray([0, 2, 3, 7, 8, 11, 20])  # some rows were not scorable


@pytest.fixture
def norms():
    """[M, N] norms at the early and at the late epoch, float32 as logged."""
    rng = np.random.default_rng(4)
    early = rng.uniform(0.5, 3.0, (5, len(IDS))).astype(np.float32)
    return early, (early * rng.uniform(0.6, 1.2, early.shape)).astype(np.float32)


@pytest.fixture
def evidence(tmp_path):
    """Builds evidence over a real gradient log of the given norms."""

    def make(early, late, seed=0, name="log") -> Evidence:
        early, late = np.asarray(early, dtype=np.float32), np.asarray(late, dtype=np.float32)
        ids = IDS[: early.shape[1]]
        tokens = np.full(len(ids), 4, dtype=np.int32)
        for epoch, norm in ((EARLY, early), (LATE, late)):
            write_epoch(tmp_path / name, EpochLog(ids, norm, np.ones_like(norm), tokens), range(len(norm)), epoch)
        return Evidence(ids, seed, EpochPair(EARLY, LATE), GradientLog(tmp_path / name))

    return make
