import os
from pathlib import Path

import pytest

pytest_plugins = ["tests.support.small_models", "tests.support.small_datasets"]

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores; threads that wait for each other take them all
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> str:
    """One cache for all whole runs of the session, in all its processes: the small base models are trained once."""
    session = tmp_path_factory.getbasetemp()
    return f"cache.path={(session.parent if 'PYTEST_XDIST_WORKER' in os.environ else session) / 'cache'}"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real public data beside the checkout; a user's machine has none of it."""
    if not SHARED.is_dir():
        pytest.skip(f"the public data sets are not on this machine ({SHARED})")
    return SHARED


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Let reports of tests about half surrogate pairs pass between processes, which encode them as UTF-8."""
    report = yield
    report.sections = [(title, text.encode("utf-8", "replace").decode()) for title, text in report.sections]
    return report
