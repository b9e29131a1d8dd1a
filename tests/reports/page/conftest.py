from pathlib import Path

import pytest

from tests.reports.page.runs import plain_rows, write_bare, write_whole


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """A run with everything, of 40 rows."""
    return write_whole(tmp_path_factory.mktemp("whole") / "run", plain_rows(40))


@pytest.fixture
def bare(tmp_path) -> Path:
    """A run that has only read its rows."""
    return write_bare(tmp_path / "run", plain_rows(12))
