from pathlib import Path

import pytest


@pytest.fixture
def changelog() -> str:
    return (Path(__file__).parents[2] / "CHANGELOG.md").read_text("utf-8")
