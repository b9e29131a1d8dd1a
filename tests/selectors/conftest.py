import numpy as np
import pytest

from gradfiltering.requests import Embeddings, Evidence, Projections, RowTokens
from gradfiltering.scorers.base import Scores

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

    def make(
        example_ids, seed=0, embeddings=None, projections=None, response_tokens=None, sources=None, row_tokens=None
    ) -> Evidence:
        example_ids, results = np.asarray(example_ids, dtype=np.int64), {}
        if embeddings is not None:
            results[Embeddings()] = np.asarray(embeddings, dtype=np.float32)
        if projections is not None:
            results[Projections()] = np.asarray(projections, dtype=np.float32)
            results[Projections(members=1)] = results[Projections()][:1]
        if row_tokens is not None:
            results[RowTokens()] = row_tokens
        tokens = np.full(len(example_ids), 4) if response_tokens is None else np.asarray(response_tokens)
        return Evidence(example_ids, seed, tokens, tokens + 5, sources, results)

    return make
