import os
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SHARED = Path(__file__).parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real public data beside the checkout; a user's machine has none of it."""
    if not SHARED.is_dir():
        pytest.skip(f"the public data sets are not on this machine ({SHARED})")
    return SHARED
