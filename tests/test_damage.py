"""A byte that flipped in a stored file is found by `verify`, and a run that would read the file stops and says so."""

from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console
from tests.support.pipeline import TINY_RUN, run_train

from gradfiltering.errors import UserError
from gradfiltering.runs.cache import Cache
from gradfiltering.runs.cache_maintenance import list_entries, verify_entries

STAGES = {"base_models", "tokens", "base_model_losses", "members", "gradient_log", "projections", "targets", "answers"}
WHOLE = [*TINY_RUN, "ensemble.m=1", "selector=spice", "projection.width=8"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A run folder and a store that holds something of every stage."""
    folder = tmp_path_factory.mktemp("damage")
    run_train(*options(folder))
    assert {entry.kind for entry in list_entries(folder / "cache")} == STAGES
    return folder


def options(place: Path) -> list[str]:
    run = place / "run"
    return [*WHOLE, f"cache.path={place / 'cache'}", f"run_dir={run}", f"hydra.run.dir={run}"]


@contextmanager
def flipped(file: Path):
    """One bit in the middle of a file is another meanwhile, as on a failing disk."""

    def flip() -> None:
        with file.open("r+b") as stream:
            stream.seek(file.stat().st_size // 2)
            (value,) = stream.read(1)
            stream.seek(-1, 1)
            stream.write(bytes([value ^ 1]))

    flip()
    try:
        yield
    finally:
        flip()


def files_of(place: Path, stage: str) -> list[Path]:
    folders = [entry.path for entry in list_entries(place / "cache") if entry.kind == stage]
    return [file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_no_file_is_handed_out_with_a_byte_flipped(place, stage):
    cache = Cache(place / "cache")
    keys = {entry.path: entry.record["key"] for entry in list_entries(cache.folder)}
    files = files_of(place, stage)
    assert files
    for file in files:
        (key,) = [key for path, key in keys.items() if file.is_relative_to(path)]
        assert cache.find(stage, key)
        with flipped(file), pytest.raises(UserError) as caught:
            cache.find(stage, key)
        assert f"{file} is not what was written there" in str(caught.value) and "Delete" in str(caught.value)
    assert cache.find(stage, key)


def test_verify_names_every_file_with_a_byte_flipped(place, capsys):
    console = Console(soft_wrap=True, width=10_000)
    for stage in sorted(STAGES):
        file = files_of(place, stage)[-1]
        with flipped(file), pytest.raises(SystemExit):
            verify_entries(place / "cache", console)
        told = capsys.readouterr().out
        assert file.name in told and "changed since it was made" in told
    verify_entries(place / "cache", console)


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_a_run_that_would_read_it_stops_and_names_the_remedy(place, stage, capsys):
    file = next(file for file in files_of(place, stage) if file.name != "artifact.json")
    with flipped(file), pytest.raises(SystemExit) as stopped:
        run_train(*options(place))
    error = " ".join(capsys.readouterr().err.split())
    assert stopped.value.code == 1 and "Traceback" not in error
    assert f"{file} is not what was written there" in error and f"Delete {file_folder(place, file)} to make" in error


def file_folder(place: Path, file: Path) -> Path:
    return next(folder for folder in file.parents if folder.parent.parent == place / "cache")
