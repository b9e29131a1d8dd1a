import pytest

from gradfiltering.data.encoder import Encoder
from gradfiltering.runs.cache import Cache
from tests.support.small_targets import ROW_COUNT, load_small_target, make_small_dataset


@pytest.fixture(scope="session")
def dataset():
    return make_small_dataset(ROW_COUNT)


@pytest.fixture
def base_model(dataset, tmp_path):
    return load_small_target(dataset, tmp_path)


@pytest.fixture
def rows(dataset, base_model, tmp_path):
    return Encoder(base_model.tokenizer, 96, Cache(tmp_path / "cache")).encode_all(dataset)
