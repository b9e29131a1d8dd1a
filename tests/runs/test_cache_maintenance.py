"""The store's command line: list, why, verify, prune."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from gradfiltering.runs.cache import Cache
from gradfiltering.runs.cache_maintenance import compare_keys, list_entries
from gradfiltering.runs.cache_record import link_result
from gradfiltering.runs.files import hash_key


def write(text):
    def build(folder):
        (folder / "part").mkdir()
        (folder / "part" / "data.bin").write_bytes(text.encode() * 1000)

    return build


@pytest.fixture
def cache(tmp_path):
    cache = Cache(tmp_path / "cache")
    cache.get_or_compute("members", {"seed": 0, "ensemble": {"lr": 0.1, "m": 3}}, write("a"))
    cache.get_or_compute("members", {"seed": 0, "ensemble": {"lr": 0.2, "m": 3}}, write("b"))
    cache.get_or_compute("base_models", {"seed": 0}, write("c"))
    return cache


def run(cache, *arguments, status=0):
    command = [sys.executable, "-m", "gradfiltering", "cache", *arguments, "--path", str(cache.folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def age(entry, days):
    about = {**entry.record, "made": (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="seconds")}
    (entry.path / "artifact.json").write_text(json.dumps({**about, "checksum": hash_key(about)}))


def test_list_names_every_result(cache):
    told = run(cache, "list")
    assert told.count("members") == 2 and told.count("base_models") == 1
    assert all(entry.path.name[:12] in told for entry in list_entries(cache.folder))


def test_why_names_the_field_that_differs_and_no_other(cache):
    one = cache.find("members", {"seed": 0, "ensemble": {"lr": 0.2, "m": 3}})
    told = run(cache, "why", one.path.name[:8])
    assert "ensemble.lr: 0.1 there, 0.2 here" in told and "seed" not in told and "ensemble.m" not in told
    assert "0 results" in run(cache, "why", "zzz", status=1)


def test_differences_go_into_nested_keys_and_see_missing_ones():
    assert list(compare_keys({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}})) == [
        ("a.c", 2, 4),
        ("d", 3, None),
    ]


def test_verify_finds_a_changed_and_a_missing_file(cache):
    assert "3 of 3 results are whole" in run(cache, "verify")
    one = cache.find("base_models", {"seed": 0})
    file = one.path / "part" / "data.bin"
    file.write_bytes(b"x" + file.read_bytes()[1:])
    assert "part/data.bin" in run(cache, "verify", status=1)
    file.unlink()
    told = run(cache, "verify", status=1)
    assert "part/data.bin" in told and "2 of 3" in told


@pytest.mark.parametrize("place", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_flipped_byte_of_the_record_is_noticed(cache, place):
    one = cache.find("base_models", {"seed": 0})
    content = bytearray((one.path / "artifact.json").read_bytes())
    content[int(place * len(content))] ^= 1
    (one.path / "artifact.json").write_bytes(content)
    assert "artifact.json changed since it was made" in run(cache, "verify", status=1)
    assert run(cache, "list").count("base_models") == 1
    assert cache.find("base_models", {"seed": 0}) is None, "a damaged result is none, and made again"


def test_resume_points_are_listed_verified_and_pruned(cache):
    point = cache.resume_point("members", {"epoch": 3})
    point.save({}, {"steps": 1})
    assert run(cache, "list").count("interrupted") == 1
    assert "4 of 4 results are whole" in run(cache, "verify")
    age(next(entry for entry in list_entries(cache.folder) if entry.kind == "interrupted"), 40)
    assert "1 results" in run(cache, "prune", "--older-than", "30")
    assert point.load() is None and len(list_entries(cache.folder)) == 3


def test_prune_deletes_rows_without_a_checkpoint_after_a_day(cache):
    points = [cache.resume_point("members", {"epoch": epoch}) for epoch in range(3)]
    points[0].save({}, {"steps": 1})
    for point in points:
        point.rows_folder.mkdir(parents=True)
        write("a")(point.rows_folder)
    for point in points[:2]:
        for path in [point.rows_folder, *point.rows_folder.rglob("*")]:
            os.utime(path, (0, 0))
    assert "half-written interrupted_rows" in run(cache, "prune", "--older-than", "30")
    assert [point.rows_folder.is_dir() for point in points] == [True, False, True]
    points[0].delete()
    assert not points[0].rows_folder.is_dir(), "the work is done"


def test_prune_deletes_half_written_files_after_a_day(cache):
    parts = [cache.folder / "members" / "a.12345678.part", cache.folder / "targets" / "b.12345678.part"]
    for part in parts:
        part.mkdir(parents=True)
        write("a")(part)
        (part / "artifact.json").write_text("{}")
    assert len(list_entries(cache.folder)) == 3, "half a result was taken for one"
    for path in [parts[0], *parts[0].rglob("*")]:
        os.utime(path, (0, 0))
    assert "half-written members/a" in run(cache, "prune", "--older-than", "30", "--dry-run")
    assert all(part.is_dir() for part in parts)
    run(cache, "prune", "--older-than", "30")
    assert [part.is_dir() for part in parts] == [False, True] and len(list_entries(cache.folder)) == 3


def test_prune_by_age_deletes_only_the_old_and_dry_run_nothing(cache):
    old = next(entry for entry in list_entries(cache.folder) if entry.kind == "base_models")
    age(old, 40)
    assert "1 results" in run(cache, "prune", "--older-than", "30", "--dry-run")
    assert len(list_entries(cache.folder)) == 3
    run(cache, "prune", "--older-than", "30")
    assert {entry.kind for entry in list_entries(cache.folder)} == {"members"}


def test_prune_by_size_deletes_the_oldest_first(cache):
    old = next(entry for entry in list_entries(cache.folder) if entry.kind == "base_models")
    age(old, 2)
    run(cache, "prune", "--larger-than", str(2500 / 2**30))
    assert old.path not in [entry.path for entry in list_entries(cache.folder)] and len(list_entries(cache.folder)) == 2


def test_prune_unlinked_keeps_what_a_run_folder_links_to(cache, tmp_path):
    kept = cache.find("base_models", {"seed": 0})
    link_result(kept.path / "part", tmp_path / "run" / "part")
    run(cache, "prune", "--unlinked")
    assert [entry.path for entry in list_entries(cache.folder)] == [kept.path]


def test_prune_without_a_rule_or_a_cache_is_refused(cache, tmp_path):
    assert "--older-than" in run(cache, "prune", status=1)
    assert "no cache" in run(Cache(tmp_path / "none"), "list", status=1)
