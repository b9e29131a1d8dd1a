import errno
import json
import os
import subprocess
import sys
import time

import pytest
import torch

from gradfiltering.errors import UserError
from gradfiltering.runs.cache import Cache
from gradfiltering.runs.files import atomic_path, hash_key, link_file, write_json

KEY = {"seed": 0, "shape": {"layers": 2, "width": 8}, "text": None, "lr": 1e-3}


def write_result(folder, text="result"):
    (folder / "weights.txt").write_text(text)


def parts(folder):
    return list(folder.rglob("*.part"))


def test_result_is_computed_once_and_reused(tmp_path):
    cache, built = Cache(tmp_path), []

    def build(folder):
        assert folder.is_dir() and not any(folder.iterdir()), "build must get an existing, empty folder"
        built.append(folder)
        write_result(folder)

    first = cache.get_or_compute("base_models", KEY, build)
    second = Cache(tmp_path).get_or_compute("base_models", KEY, build)
    assert len(built) == 1, "the second run with the same key built again"
    assert (first.reused, second.reused) == (False, True)
    assert first.path == second.path and (second.path / "weights.txt").read_text() == "result"
    assert second.seconds == first.seconds, "a reused result must report what its making took"


def test_artifact_says_what_made_it(tmp_path):
    made = Cache(tmp_path).get_or_compute("base_models", KEY, write_result)
    about = json.loads((made.path / "artifact.json").read_text())
    assert about["key"] == KEY and about["stage"] == "base_models"
    assert about["versions"]["torch"] and about["seconds"] == made.seconds


def test_other_key_and_other_kind_compute_again(tmp_path):
    cache = Cache(tmp_path)
    paths = {cache.get_or_compute(stage, {"seed": seed}, write_result).path for stage in ("a", "b") for seed in (0, 1)}
    assert len(paths) == 4


def test_failing_computation_leaves_nothing_and_is_repeated(tmp_path):
    cache = Cache(tmp_path)

    def fail(folder):
        write_result(folder)
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        cache.get_or_compute("base_models", KEY, fail)
    assert not any((tmp_path / "base_models").iterdir()), "half a result stayed behind"
    assert not cache.get_or_compute("base_models", KEY, write_result).reused


@pytest.mark.parametrize("suffix", [".12345678.part", ""])
def test_half_a_result_is_never_returned(tmp_path, suffix):
    cache = Cache(tmp_path)
    place = cache.get_or_compute("base_models", KEY, write_result).path
    # A killed run leaves a `.part` folder, or, killed while replacing, a folder without its record.
    half = place.rename(place.with_name(place.name + suffix)) if suffix else place
    (half / "weights.txt").write_text("half")
    if not suffix:
        (half / "artifact.json").unlink()
    again = cache.get_or_compute("base_models", KEY, write_result)
    assert not again.reused and (again.path / "weights.txt").read_text() == "result"


def test_missing_input_is_not_called_a_failed_write(tmp_path):
    def build(folder):
        (tmp_path / "no such corpus.txt").read_text()

    with pytest.raises(FileNotFoundError, match="no such corpus"):
        Cache(tmp_path / "cache").get_or_compute("base_models", KEY, build)
    assert not parts(tmp_path)


def test_key_digest_ignores_the_order_of_keys_at_every_depth():
    turned = {"lr": 1e-3, "text": None, "shape": {"width": 8, "layers": 2}, "seed": 0}
    assert list(turned) != list(KEY)
    assert hash_key(turned) == hash_key(KEY)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1}, {"seed": None}, {"seed": "0"}, {"seed": False}, {"lr": 1e-3 + 1e-18}, {"text": ""}, {"text": []},
        {"shape": {"layers": 2, "width": 9}}, {"shape": {"layers": 8, "width": 2}}, {"shape": {"layers": 2}},
        {"more": None},
    ],
    ids=str,
)  # fmt: skip
def test_key_digest_sees_every_value(change):
    assert hash_key({**KEY, **change}) != hash_key(KEY)


def test_key_digest_sees_the_order_of_lists_and_refuses_nan():
    assert hash_key([1, 2]) != hash_key([2, 1])
    with pytest.raises(ValueError, match="JSON compliant"):
        hash_key({"lr": float("nan")})


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_failed_write_is_a_user_error_with_a_remedy(tmp_path, code):
    place = tmp_path / "scores.parquet"
    place.write_text("earlier")
    with pytest.raises(UserError) as caught, atomic_path(place) as part:
        part.write_text("half")
        raise OSError(code, os.strerror(code))
    message = str(caught.value)
    assert str(place) in message and os.strerror(code) in message
    assert "run_dir=" in message and "cache.path=" in message
    assert not parts(tmp_path), "half a file stayed behind"
    assert place.read_text() == "earlier", "a failed write destroyed the earlier result"


def test_full_disk_under_the_cache_is_a_user_error(tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.mkdir", full)
    with pytest.raises(UserError, match=r"No space left on device.*cache\.path="):
        Cache(tmp_path / "cache").get_or_compute("base_models", KEY, write_result)


def test_a_folder_replaces_an_earlier_one_whole(tmp_path):
    place = tmp_path / "adapter"
    place.mkdir()
    (place / "old.txt").write_text("old")
    with atomic_path(place) as part:
        part.mkdir()
        (part / "new.txt").write_text("new")
        assert (place / "old.txt").is_file(), "the earlier result must stay until the new one is whole"
    assert [file.name for file in place.iterdir()] == ["new.txt"]
    assert not parts(tmp_path)


def test_write_json_round_trips_and_refuses_half_files(tmp_path):
    value = {"name": "Zoë", "numbers": [1, 2.5, None]}
    write_json(tmp_path / "deep" / "summary.json", value)
    text = (tmp_path / "deep" / "summary.json").read_text(encoding="utf-8")
    assert json.loads(text) == value and "Zoë" in text
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "deep" / "summary.json", {"loss": float("inf")})
    assert json.loads((tmp_path / "deep" / "summary.json").read_text("utf-8")) == value
    assert not parts(tmp_path)


def test_arguments_are_passed_on(tmp_path):
    cached = Cache(tmp_path).get_or_compute("texts", KEY, write_result, text="other")
    assert (cached.path / "weights.txt").read_text() == "other"


def test_committed_result_is_found_with_its_seconds(tmp_path):
    cache = Cache(tmp_path)
    assert cache.find("targets", KEY) is None
    committed = cache.commit("targets", KEY, write_result, seconds=12.5)
    found = cache.find("targets", KEY)
    assert (committed.reused, found.reused) == (False, True) and found.seconds == committed.seconds == 12.5
    assert cache.commit("targets", KEY, write_result, seconds=1.0).seconds == 12.5, "a result that is there stays"
    cache.delete("targets", KEY)
    assert cache.find("targets", KEY) is None


def test_result_may_be_committed_while_its_lock_is_held(tmp_path):
    cache = Cache(tmp_path)
    with cache.lock("targets", KEY), cache.lock("targets", KEY):
        cache.commit("targets", KEY, write_result)
        assert len(list((tmp_path / "locks").glob("*.owner"))) == 1
    assert cache.find("targets", KEY) and not list((tmp_path / "locks").glob("*.owner"))


def test_read_only_cache_hands_out_its_results(tmp_path, monkeypatch):
    path = Cache(tmp_path).get_or_compute("base_models", KEY, write_result).path

    def refuse(*args, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("mkdir", "touch", "rename", "unlink"):
        monkeypatch.setattr(f"pathlib.Path.{name}", refuse)
    assert Cache(tmp_path).get_or_compute("base_models", KEY, write_result).path == path


def test_resume_point_keeps_the_last_checkpoint(tmp_path):
    cache = Cache(tmp_path)
    point = cache.resume_point("targets", KEY)
    assert point.load() is None
    point.save({"a": torch.zeros(2)}, {"steps": 1})
    point.save({"a": torch.ones(2, dtype=torch.float64)}, {"steps": 2, "curve": [{"loss": None}]})
    checkpoint = cache.resume_point("targets", KEY).load()
    assert checkpoint.state == {"steps": 2, "curve": [{"loss": None}]}
    torch.testing.assert_close(checkpoint.tensors["a"], torch.ones(2, dtype=torch.float64), rtol=0, atol=0)
    assert cache.resume_point("members", KEY).load() is None, "another kind has points of its own"
    assert [point.key for point in cache.resume_points("targets")] == [KEY]
    point.delete()
    assert point.load() is None and cache.resume_points("targets") == []


def test_linked_file_stays_when_the_cache_goes(tmp_path):
    (tmp_path / "cached").write_text("result")
    link_file(tmp_path / "cached", tmp_path / "run" / "linked")
    (tmp_path / "cached").unlink()
    assert (tmp_path / "run" / "linked").read_text() == "result"


WANTS = """
import os, sys, time
from pathlib import Path
from gradfiltering.runs.cache import Cache

def build(folder):
    with open(sys.argv[2], "a") as log:
        log.write(f"{os.getpid()}\\n")
    while sys.argv[3] == "halt" and not Path(sys.argv[2]).with_name("go").exists():
        time.sleep(0.05)
    (folder / "weights.txt").write_text("result")

print("reused", Cache(sys.argv[1]).get_or_compute("base_models", {"seed": 0}, build).reused)
"""


def wanting(folder, how):
    arguments = [sys.executable, "-c", WANTS, str(folder / "cache"), str(folder / "log"), how]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def began(folder, count):
    for _ in range(300):
        if (folder / "log").is_file() and len((folder / "log").read_text().split()) >= count:
            return
        time.sleep(0.1)
    raise AssertionError("no process began to build")


def test_one_of_two_processes_makes_a_result(tmp_path):
    first = wanting(tmp_path, "halt")
    began(tmp_path, 1)
    second = wanting(tmp_path, "build")
    assert second.stdout.readline().startswith(f"waiting for process {first.pid} on")
    (tmp_path / "go").touch()
    told = [process.communicate()[0] for process in (first, second)]
    assert (tmp_path / "log").read_text().split() == [str(first.pid)]
    assert told == ["reused False\n", "reused True\n"]


def test_killed_process_frees_its_lock_and_leaves_no_result(tmp_path):
    first = wanting(tmp_path, "halt")
    began(tmp_path, 1)
    second = wanting(tmp_path, "build")
    assert second.stdout.readline().startswith(f"waiting for process {first.pid} on")
    first.kill()
    first.wait()
    assert second.communicate()[0].endswith("reused False\n")
    (made,) = (tmp_path / "cache" / "base_models").glob("*/artifact.json")
    assert (made.parent / "weights.txt").read_text() == "result"


def test_a_result_can_be_found_by_a_check_of_some_files(tmp_path, capsys):
    cache = Cache(tmp_path)

    def write_two(folder):
        write_result(folder)
        (folder / "index.txt").write_text("index")

    made = cache.get_or_compute("base_models", KEY, write_two)
    (made.path / "weights.txt").write_text("damage")
    assert cache.find("base_models", KEY, checked_files=["index.txt"]).path == made.path
    assert capsys.readouterr().out == "" and cache.find("base_models", KEY) is None
    assert cache.list_keys("base_models") == [KEY] and cache.list_keys("members") == []
