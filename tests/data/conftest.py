import pytest

from gradfiltering.data.schemas import Columns
from gradfiltering.runs.cache import Cache
from tests.support.small_datasets import COLUMNS


@pytest.fixture(autouse=True)
def cache_of_the_test(tmp_path, monkeypatch):
    """Rows are cached under the test's own folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def columns() -> Columns:
    return COLUMNS


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache")
