from pathlib import Path

import numpy as np
import pytest

from gradfiltering.requests import EpochLog, Evidence, GradientLog, GradientLogPair
from gradfiltering.runs.gradient_log import GradientLogReader
from gradfiltering.shards.database import open_database
from gradfiltering.shards.scoring import ComparedLog
from tests.support.gradient_logs import write_epoch

ROWS, MEMBERS, SEED = 700, 3, 5


@pytest.fixture
def log_folder(tmp_path) -> Path:
    """A log in which a third of the rows has the measurements of another row, so that scores are equal."""
    rng = np.random.default_rng(0)
    ids = np.sort(rng.choice(3 * ROWS, ROWS, replace=False))
    twins = np.where(rng.random(ROWS) < 1 / 3, 0, np.arange(ROWS))
    tokens = rng.integers(1, 30, ROWS).astype(np.int32)
    for epoch in (1, 2):
        norms, losses = (rng.gamma(2, 1 / epoch, (MEMBERS, ROWS))[:, twins] for _ in range(2))
        write_epoch(tmp_path / "run" / "gradient_log", EpochLog(ids, norms, losses, tokens), range(MEMBERS), epoch)
    return tmp_path / "run" / "gradient_log"


@pytest.fixture
def compared_log(log_folder) -> ComparedLog:
    return ComparedLog(GradientLogReader(log_folder), early=1, late=2, seed=SEED)


@pytest.fixture
def evidence(compared_log) -> Evidence:
    """The same rows in memory."""
    early, late = (compared_log.log.epoch(epoch) for epoch in (1, 2))
    results = {GradientLog(): GradientLogPair(early, late)}
    return Evidence(late.example_ids, SEED, late.response_tokens, late.response_tokens, results=results)


@pytest.fixture
def connection(tmp_path):
    with open_database(tmp_path / "spill") as connection:
        yield connection
