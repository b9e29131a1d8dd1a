"""A byte that flipped in a stored file is found by `verify`, and a run that would read the file makes it again."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import datasets
import pytest
from rich.console import Console

from gradfiltering.data.loading import load
from gradfiltering.runs.cache import Cache
from gradfiltering.runs.cache_maintenance import damaged_files_of, list_entries, verify_entries
from tests.support.pipeline import TINY_RUN, run_train

STAGES = {
    "base_models",
    "tokens",
    "base_model_losses",
    "members",
    "gradient_log",
    "ensemble_losses",
    "projections",
    "targets",
    "answers",
    "row_hygiene",
    "rows",
    "frozen_prefix",
}
READ_BY = {
    "frozen_prefix": ["gradient_log", "ensemble_losses", "projections"]
}  # results without which a run reads a stage again
MADE_AGAIN_BY_DEFAULT = {"rows", "targets", "gradient_log", "frozen_prefix", "answers"}
UPPER_LAYER = ["proxy.base_model.layers=2", "ensemble.lora.layers=last_1"]
WHOLE = [*TINY_RUN, *UPPER_LAYER, "ensemble.m=2", "scorer=direction_gsnr", "projection.width=8"]


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
def test_no_file_is_handed_out_with_a_byte_flipped(place, stage, capsys):
    cache = Cache(place / "cache")
    keys = {entry.path: entry.record["key"] for entry in list_entries(cache.folder)}
    files = files_of(place, stage)
    assert files
    for file in files:
        (key,) = [key for path, key in keys.items() if file.is_relative_to(path)]
        assert cache.find(stage, key)
        with flipped(file):
            assert cache.find(stage, key) is None
        shown = " ".join(capsys.readouterr().out.split())
        assert f"{file} is not what was written there" in shown and "it is made again" in shown
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


# In the default tests a result of each sort: rows, a model that was trained, a table of measurements, arrays that are
# mapped, answers. What notices the damage is the same for all, and is tested for all above.
@pytest.mark.parametrize(
    "stage",
    [pytest.param(stage, marks=() if stage in MADE_AGAIN_BY_DEFAULT else pytest.mark.slow) for stage in sorted(STAGES)],
)
def test_a_run_makes_a_damaged_result_again(stage, place, capsys):
    file = next(file for file in files_of(place, stage) if file.name != "artifact.json")
    before = file.read_bytes()
    with file.open("r+b") as stream:  # as a failing disk would; run folders link to the same file
        stream.seek(len(before) // 2)
        stream.write(bytes([before[len(before) // 2] ^ 1]))
    for reader in READ_BY.get(stage, []):
        shutil.rmtree(place / "cache" / reader)
    run_train(*options(place))
    assert f"{file} is not what was written there" in " ".join(capsys.readouterr().out.split())
    assert file.read_bytes() == before and not damaged_files_of(entry_of(place, file))


def entry_of(place: Path, file: Path):
    return next(entry for entry in list_entries(place / "cache") if file.is_relative_to(entry.path))


@pytest.mark.parametrize("damage", ["flipped value", "cut", "no table", "no description", "broken description"])
def test_rows_of_a_damaged_cache_are_read_again(damage, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(f'{{"instruction": "say {n}", "output": "answer {n}"}}\n' for n in range(50)))
    expected = [load(str(source)).rows[n] for n in range(50)]
    (table,) = (tmp_path / "cache").rglob("rows.arrow")
    content = table.read_bytes()
    if damage == "flipped value":
        table.write_bytes(content.replace(b"answer 7", b"answer 8"))
    elif damage == "cut":
        table.write_bytes(content[: len(content) // 2])
    elif damage == "no table":
        table.unlink()
    elif damage == "no description":
        (table.parent / "about.json").unlink()
    else:
        (table.parent / "about.json").write_text("{")
    loaded = load(str(source))
    assert [loaded.rows[n] for n in range(50)] == expected
    shown = " ".join(capsys.readouterr().out.split())
    assert "is not what was written there" in shown and "the rows are read again" in shown
    load(str(source))
    assert capsys.readouterr().out == ""
