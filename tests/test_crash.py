"""A run killed at any moment and started again by the same command ends as one that was left alone."""

import os
import random
import re
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from gradfiltering.runs.cache_maintenance import damaged_files_of, list_entries
from tests.support.crashes import Training
from tests.support.pipeline import TINY_RUN, summary

UPPER_LAYER = ["proxy.base_model.layers=2", "ensemble.lora.layers=last_1"]  # what the lower one hands on is stored
# A checkpoint after every step.
OFTEN = ["ensemble.checkpoint_minutes=1e-9", "target.tuning.checkpoint_minutes=1e-9"]
KILLS, SEED = 20, 0
STORED = {
    "locks", "base_models", "tokens", "base_model_losses", "members", "interrupted", "interrupted_rows",
    "gradient_log", "ensemble_losses",
    "targets", "answers", "row_hygiene", "rows", "frozen_prefix",
}  # fmt: skip
EPOCHS_OF_MEMBERS = 4

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="file operations are traced through /proc"),
]


def command(place: Path, run: str = "run", *overrides: str) -> list[str]:
    """Run folder and store both lie below `place`."""
    folder = place / run
    places = [f"cache.path={place / 'cache'}", f"run_dir={folder}", f"hydra.run.dir={folder}"]
    return [*TINY_RUN, "trainer=cpu", *UPPER_LAYER, *OFTEN, *overrides, *places]


def start(tmp_path: Path, name: str, *overrides: str, run: str = "run", halt_at: int | None = None) -> Training:
    place = tmp_path / "place"
    return Training(tmp_path / name, command(place, run, *overrides), place, halt_at)


def outcome(folder: Path) -> dict[str, Any]:
    """What a run is for: log, adapters, scores, subset, models, answers, verdicts and their tally."""
    files = [
        *folder.glob("adapters/**/*.safetensors"), *folder.glob("target/*/adapter/*.safetensors"),
        *folder.glob("gradient_log*/**/*.parquet"), *folder.glob("responses/*"), *folder.glob("verdicts.jsonl"),
        *folder.glob("subset.jsonl"),
    ]  # fmt: skip
    found: dict[str, Any] = {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
    tables = [folder / name for name in ("scores.parquet", "trajectory.parquet")]
    found |= {table.name: pq.read_table(table).to_pylist() for table in tables if table.is_file()}
    told = summary(folder)
    return found | {name: told.get(name) for name in ("pws", "metrics", "selection", "data")}


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> tuple[list[str], dict[str, Any]]:
    """File operations and outcome of a run that was left alone."""
    folder = tmp_path_factory.mktemp("reference")
    run = start(folder, "alone")
    run.finish()
    return run.operations, outcome(folder / "place" / "run")


def kind(operation: str) -> str:
    """What an operation is about: a stage's folder in the cache, or a file or folder of the run."""
    parts = operation.split(" ", 1)[1].split("/")
    return re.sub(r"\.[0-9a-f]{8}-\d+-\d+-[0-9a-f]{8}\.part$", "", "/".join(parts[:2]))


def moments(operations: list[str]) -> list[int]:
    """Numbers of operations: one of each stage in the cache, the others among the files of the run."""
    rng = random.Random(SEED)
    by_kind = defaultdict(list)
    for number, operation in enumerate(operations):
        by_kind[kind(operation)].append(number)
    # A probe is an empty file that shows whether the cache can be written; it is deleted at once.
    stored = sorted(name for name in by_kind if name.startswith("cache/") and name != "cache/probe")
    assert {name.removeprefix("cache/") for name in stored} == STORED, "a stage keeps nothing, or one is new"
    others = sorted(by_kind.keys() - set(stored))
    return [rng.choice(by_kind[name]) for name in stored + rng.sample(others, KILLS - len(stored))]


def tear(folder: Path) -> None:
    """Cuts in half whatever was being written, as a lost node may leave it; nobody may read it anyway."""
    for part in folder.rglob("*.part"):
        for file in [part, *part.rglob("*")]:
            if file.is_file() and not file.is_symlink() and file.stat().st_nlink == 1:
                os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_and_started_again(reference, tmp_path, number):
    operations, expected = reference
    killed = start(tmp_path, "killed", halt_at=moments(operations)[number])
    killed.wait_until_halted()
    if number % 2:  # not just between two operations, but amid whatever comes after them
        killed.go_on.set()
        time.sleep(random.Random(number).uniform(0, 0.2))
    killed.kill(ended=bool(number % 2))  # the last operations of a run are quickly done
    place = tmp_path / "place"
    assert [entry.path for entry in list_entries(place / "cache") if damaged_files_of(entry)] == []
    tear(place)
    resumed = start(tmp_path, "resumed")
    resumed.finish()
    found = outcome(place / "run")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == value, f"{name} differs after a kill before: {operations[moments(operations)[number]]}"
    assert not list((place / "cache").glob("interrupted/[0-9a-f]*[0-9a-f]")), "a checkpoint of finished work stayed"


def first_member(operations: list[str]) -> int:
    return next(number for number, operation in enumerate(operations) if operation.startswith("os.mkdir cache/members"))


def racing(tmp_path: Path, operations: list[str]) -> tuple[Training, Training]:
    """Two runs that want the same proxy: one halted while it trains, the other waiting for it."""
    first = start(tmp_path, "first", "until=proxy", run="one", halt_at=first_member(operations))
    first.wait_until_halted()
    second = start(tmp_path, "second", "until=proxy", run="two")
    words = f"waiting for process {first.process.pid} on"
    for _ in range(3000):
        if words in second.said:
            break
        assert second.process.is_alive(), second.said
        time.sleep(0.1)
    assert words in second.said
    return first, second


def test_of_two_runs_that_want_the_same_proxy_one_trains_it(reference, tmp_path):
    first, second = racing(tmp_path, reference[0])
    first.finish()
    second.finish()
    one, two = tmp_path / "place" / "one", tmp_path / "place" / "two"
    assert [summary(run)["proxy"]["trained"] for run in (one, two)] == [EPOCHS_OF_MEMBERS, 0]
    assert summary(two)["proxy"]["logged"] == 0
    assert_same_proxy(reference[1], one, two)


def test_waiting_run_takes_over_from_a_killed_one(reference, tmp_path):
    first, second = racing(tmp_path, reference[0])
    first.kill()
    second.finish()
    two = tmp_path / "place" / "two"
    # The killed run stood before keeping the first member of epoch 1, which its whole stack had ended.
    assert summary(two)["proxy"]["trained"] == EPOCHS_OF_MEMBERS // 2
    assert_same_proxy(reference[1], two)


def assert_same_proxy(expected: dict[str, Any], *runs: Path) -> None:
    names = [name for name in expected if name.startswith(("adapters/", "gradient_log"))]
    assert len(names) == 2 * 2 * 3
    for run in runs:
        found = outcome(run)
        assert all(found[name] == expected[name] for name in names)
