"""The package as a user installs it: from a wheel, used in an empty folder."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.support.pipeline import ROOT, SMALL_MODELS, TINY_RUN

BUILT_FROM = ("pyproject.toml", "setup.py", "README.md", "LICENSE")
API_CALL = f"""
import gradfiltering as gf
rows = [{{"instruction": "Say it.", "input": "", "output": str(number)}} for number in range(20)]
options = [option.partition("=") for option in {SMALL_MODELS!r} if option.startswith("proxy.")]
sizes = {{name: int(value) for name, _, value in options}}
selection = gf.select_rows(rows, fraction=0.1, proxy="tiny", scorer="random", **sizes)
assert len(selection.rows) == 2 and "site" in gf.__file__, gf.__file__
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel of this checkout, built beside it so that nothing stays in it."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    leave_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("src", "conf"):
        shutil.copytree(ROOT / folder, source / folder, ignore=leave_out)
    for name in BUILT_FROM:
        shutil.copy(ROOT / name, source)
    command = ["pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(built), str(source)]
    subprocess.run([sys.executable, "-m", *command], check=True)
    return next(built.glob("*.whl"))


def run_outside(command, folder, **variables) -> str:
    """Run a command in a folder without this checkout on the path."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env={**kept, **variables}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_holds_configuration_pages_and_plugins(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    conf = {f"gradfiltering/conf/{path.relative_to(ROOT / 'conf')}" for path in (ROOT / "conf").rglob("*.yaml")}
    source = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*") if path.is_file()}
    source = {name for name in source if "__pycache__" not in name and ".egg-info" not in name}
    assert conf | source <= names
    assert not {name for name in names if name.startswith(("tests/", "conf/", "scripts/"))}


def test_command_and_api_work_in_an_empty_folder(wheel, tmp_path):
    site, empty, caches = tmp_path / "site", tmp_path / "empty", tmp_path / "caches"
    install = ["pip", "install", "-q", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run([sys.executable, "-m", *install], check=True)
    empty.mkdir()
    variables = {"PYTHONPATH": str(site), "XDG_CACHE_HOME": str(caches)}
    command = site / "bin" / "gradfiltering"
    assert "rescore" in run_outside([command, "judge", "--help"], empty, **variables)
    run_outside([command, "run", "until=select", *TINY_RUN], empty, **variables)
    assert list(empty.glob("logs/runs/*/*/subset.jsonl")) and [path.name for path in empty.iterdir()] == ["logs"]
    assert "members" in run_outside([sys.executable, "-m", "gradfiltering", "cache", "list"], empty, **variables)
    shutil.rmtree(empty / "logs")
    run_outside([sys.executable, "-c", API_CALL], empty, **variables)
    assert not list(empty.iterdir())


@pytest.mark.slow
def test_it_installs_into_an_empty_environment(wheel, tmp_path):
    venv.create(tmp_path / "site", with_pip=True)
    binaries, empty = tmp_path / "site" / "bin", tmp_path / "empty"
    empty.mkdir()
    torch = re.search(r"^torch==\S+$", (ROOT / "requirements.lock").read_text("utf-8"), re.MULTILINE).group()
    run_outside([binaries / "pip", "install", "-q", torch], empty)
    run_outside([binaries / "pip", "install", "-q", str(wheel)], empty)
    variables = {"XDG_CACHE_HOME": str(tmp_path / "caches"), "HF_HUB_OFFLINE": "1"}
    run_outside([binaries / "gradfiltering", "run", *TINY_RUN, "report.page=true"], empty, **variables)
    assert list(empty.glob("logs/runs/*/*/report.html"))


def imported_packages(folder: Path) -> set[str]:
    """Top-level names that the code below a folder imports, wherever in a file."""
    names: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names


def test_every_import_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    declared = {
        re.split(r"[\[<>=!~; ]", requirement)[0].lower().replace("_", "-")
        for requirement in [*project["dependencies"], *extras]
    }
    distributions = packages_distributions()
    third_party = imported_packages(ROOT / "src") - {*sys.stdlib_module_names, "gradfiltering", "hydra_plugins"}
    undeclared = {
        name
        for name in third_party
        if not {provider.lower().replace("_", "-") for provider in distributions.get(name, [name])} & declared
    }
    assert not undeclared, f"declare these in pyproject.toml: {sorted(undeclared)}"
