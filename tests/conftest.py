import os
from pathlib import Path

import pytest

pytest_plugins = ["tests.support.small_models", "tests.support.small_datasets"]

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SHARED = Path(__file__).parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> str:
    """One store for all whole runs of the session, so that the small backbones are trained once."""
    return f"cache.path={tmp_path_factory.mktemp('cache')}"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real public data beside the checkout; a user's machine has none of it."""
    if not SHARED.is_dir():
        pytest.skip(f"the public data sets are not on this machine ({SHARED})")
    return SHARED
