"""The notebooks under examples/ run from top to bottom, offline."""

import os

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.pipeline import ROOT, SMALL_MODELS

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
# A smaller proxy than the one a reader gets, so that the test takes seconds.
SMALL_PROXY = ", ".join(
    f'"{name}": {value}' for name, value in (option.split("=") for option in SMALL_MODELS) if name.startswith("proxy.")
)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("GRADFILTERING_CACHE", cache.partition("=")[2])
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the outputs before committing"
    for cell in notebook.cells:
        cell.source = cell.source.replace('ensemble={"m": 3}', f'ensemble={{"m": 2}}, **{{{SMALL_PROXY}}}')
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert path.stem != "select_rows" or (tmp_path / "report.html").is_file()


def test_both_notebooks_are_there():
    assert [path.stem for path in NOTEBOOKS] == ["per_example_gradients", "select_rows"]
