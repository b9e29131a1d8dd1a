"""Leftovers of killed processes, symbolic links, and errors while cleaning up."""

import errno
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gradfiltering.errors import UserError
from gradfiltering.reports.experiment_logger import close_logger
from gradfiltering.runs.cache import Cache
from gradfiltering.runs.cache_maintenance import list_cache_leftovers
from gradfiltering.runs.files import (
    atomic_path,
    clear_leftovers,
    delete_path,
    discard_folder,
    list_leftovers,
    refuse_address,
    temporary_path,
    write_json,
)
from gradfiltering.runs.logs import log_to_file
from gradfiltering.runs.run_folder import LOGGER_FOLDERS, OUTPUTS, RunFolder
from gradfiltering.runs.run_lock import hold_run_folder

KEY = {"seed": 0}
NAME_A_PART = """
import sys
from pathlib import Path
from gradfiltering.runs.files import temporary_path
print(temporary_path(Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def naming_process(path):
    """A process that has named a temporary path, and lives until its input ends; and the path."""
    command = [sys.executable, "-c", NAME_A_PART, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return process, path.with_name(Path(process.stdout.readline().strip()).name)


@pytest.fixture
def dead_part(tmp_path_factory):
    """Makes the temporary name, beside a path, of a process that has ended."""
    process, part = naming_process(tmp_path_factory.mktemp("dead") / "name")
    process.communicate("")
    owner = part.name.removeprefix("name")
    return lambda path: path.with_name(path.name + owner)


@pytest.fixture
def outside(tmp_path):
    """A folder outside of any run, with a file that must stay as it is."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "precious.txt").write_text("precious")
    yield folder
    assert [path.name for path in folder.iterdir()] == ["precious.txt"]
    assert (folder / "precious.txt").read_text() == "precious"


# Leftovers.


def test_parts_of_a_living_process_are_no_leftovers(tmp_path):
    process, part = naming_process(tmp_path / "scores.parquet")
    part.mkdir()
    own_part = temporary_path(tmp_path / "scores.parquet")
    own_part.touch()
    clear_leftovers(tmp_path)
    assert part.is_dir() and own_part.is_file()
    process.communicate("")
    assert list_leftovers(tmp_path) == [part]
    clear_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [own_part]


def test_a_process_that_got_the_number_of_a_dead_one_is_not_its_owner(tmp_path):
    host, process_id, start, digits = temporary_path(tmp_path / "a").name.split(".")[1].split("-")
    (tmp_path / f"a.{host}-{process_id}-{int(start) - 1}-{digits}.part").touch()
    (tmp_path / f"b.{host}-{process_id}-{start}-{digits}.part").touch()
    clear_leftovers(tmp_path)
    assert [path.name[0] for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("name", ["a.0000aaaa-1-5-12345678.part", "a.12345678.part"])
@pytest.mark.parametrize("is_folder", [False, True])
def test_parts_of_unknown_processes_stay_for_a_day(name, is_folder, tmp_path):
    part = tmp_path / name
    inner = part / "inner" if is_folder else part
    inner.parent.mkdir(exist_ok=True)
    inner.touch()
    assert list_leftovers(tmp_path) == []
    for path in {part, inner}:
        os.utime(path, (time.time() - 90000,) * 2)
    assert list_leftovers(tmp_path) == [part]


@pytest.mark.parametrize("name", ["movie.part", "a.part", "a.1234567.part", "a.0000aaaa-1-12345678.part"])
def test_files_with_other_names_are_never_leftovers(name, tmp_path):
    (tmp_path / name).touch()
    os.utime(tmp_path / name, (0, 0))
    assert list_leftovers(tmp_path) == []


@pytest.mark.parametrize("work", ["commit", "resume point", "prune"])
def test_leftovers_in_the_cache_are_cleared_by_the_next_run(work, tmp_path, dead_part):
    cache = Cache(tmp_path)
    kind = {"commit": "targets", "resume point": "interrupted", "prune": "members"}[work]
    part = dead_part(tmp_path / kind / "0123")
    (part / "deep").mkdir(parents=True)
    (part / "deep" / "half.txt").touch()
    assert list_cache_leftovers(tmp_path) == [part]
    if work == "commit":
        cache.commit("targets", KEY, lambda folder: None)
    elif work == "resume point":
        cache.resume_point("targets", KEY).save({"a": torch.zeros(1)}, {})
    else:
        from rich.console import Console

        from gradfiltering.runs.cache_maintenance import prune_entries

        prune_entries(tmp_path, [], False, Console())
    assert not part.exists() and list_cache_leftovers(tmp_path) == []


@pytest.mark.parametrize("name", ["summary.json", "report.html", "sweep.csv", "tables"])
def test_leftovers_beside_a_written_file_are_cleared(name, tmp_path, dead_part):
    part = dead_part(tmp_path / name)
    part.touch()
    write_json(tmp_path / "summary.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_a_new_run_clears_the_leftovers_of_its_folder(tmp_path, dead_part):
    for name in ("report.html", "figures", "responses"):
        dead_part(tmp_path / name).mkdir()
    RunFolder(tmp_path).begin({}, 0, torch.device("cpu"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "environment.json"]


# Symbolic links.


@pytest.mark.parametrize("target", ["folder", "file", "nowhere"])
def test_old_outputs_that_are_links_are_deleted_and_not_followed(target, tmp_path, outside):
    leads_to = {"folder": outside, "file": outside / "precious.txt", "nowhere": outside / "nothing"}[target]
    run = tmp_path / "run"
    run.mkdir()
    (run / "environment.json").symlink_to(outside / "precious.txt")
    (run / "config.yaml").symlink_to(leads_to)
    for name in (*OUTPUTS, *LOGGER_FOLDERS):
        (run / name.replace("*", "csv")).symlink_to(leads_to)
    RunFolder(run).begin({"seed": 0}, 0, torch.device("cpu"))
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "environment.json"]
    assert not any(path.is_symlink() for path in run.iterdir())
    assert RunFolder(run).read_config() == {"seed": 0}


def test_a_link_that_no_run_made_is_refused(tmp_path, outside):
    run = tmp_path / "run"
    run.mkdir()
    (run / "target").symlink_to(outside)
    with pytest.raises(UserError, match="holds target, which no earlier run made"):
        RunFolder(run).begin({}, 0, torch.device("cpu"))


@pytest.mark.parametrize("delete", [delete_path, discard_folder])
@pytest.mark.parametrize("depth", ["the link itself", "a folder with it"])
def test_what_a_link_leads_to_is_not_deleted(delete, depth, tmp_path, outside):
    place = tmp_path / "place"
    link = place if depth == "the link itself" else place / "link"
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(outside)
    delete(place)
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("target", ["folder", "file", "nowhere"])
def test_a_result_takes_the_place_of_a_link(kind, target, tmp_path, outside):
    leads_to = {"folder": outside, "file": outside / "precious.txt", "nowhere": outside / "nothing"}[target]
    place = tmp_path / "result"
    place.symlink_to(leads_to)
    with atomic_path(place) as part:
        if kind == "folder":
            part.mkdir()
        else:
            part.write_text("new")
    assert not place.is_symlink() and place.is_dir() == (kind == "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "result"]


def test_the_log_is_not_written_through_a_link(tmp_path, outside):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.log").symlink_to(outside / "precious.txt")
    with log_to_file(run):
        logging.getLogger("gradfiltering.x").error("hello")
    assert "hello" in (run / "run.log").read_text("utf-8") and not (run / "run.log").is_symlink()


def test_figures_are_not_written_through_a_link(tmp_path, outside):
    from gradfiltering.reports.page.charts import write_figures

    (tmp_path / "figures").symlink_to(outside)
    write_figures([], tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


# Errors while cleaning up.


def fail(*_, **__):
    raise OSError(errno.EIO, "cannot clean up")


@pytest.fixture
def no_cleaning(monkeypatch):
    """Nothing can be deleted or renamed."""
    for name in ("unlink", "rename", "rmdir"):
        monkeypatch.setattr(f"pathlib.Path.{name}", fail)
        monkeypatch.setattr(os, name, fail)
    monkeypatch.setattr(shutil, "rmtree", fail)


@pytest.mark.parametrize("write", ["file", "folder", "result of the cache", "checkpoint", "lock"])
def test_an_error_while_writing_is_not_hidden_by_cleaning_up(write, tmp_path, no_cleaning):
    def write_half(part):
        part.mkdir(exist_ok=True)
        raise ZeroDivisionError

    cache = Cache(tmp_path)
    with pytest.raises(ZeroDivisionError):
        if write == "folder":
            with atomic_path(tmp_path / "place") as part:
                write_half(part)
        elif write == "file":
            with atomic_path(tmp_path / "place") as part:
                part.touch()
                raise ZeroDivisionError
        elif write == "result of the cache":
            cache.get_or_compute("targets", KEY, write_half)
        elif write == "checkpoint":
            cache._replace("targets", KEY, write_half)
        else:
            with cache.lock("targets", KEY):
                raise ZeroDivisionError


def test_a_lock_is_free_after_its_owner_could_not_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr("gradfiltering.runs.result_lock.write_json", lambda *_: fail())
    with pytest.raises(UserError, match="cannot clean up"), Cache(tmp_path).lock("targets", KEY):
        pass
    monkeypatch.undo()
    with Cache(tmp_path).lock("targets", KEY):
        pass


class FailingLogger:
    def finalize(self, status):
        raise OSError(errno.ENOSPC, f"no room for {status}")


def test_an_error_is_not_hidden_by_a_logger_that_cannot_be_closed():
    with pytest.raises(OSError, match="no room for success"):
        close_logger(FailingLogger())
    with pytest.raises(ZeroDivisionError):
        try:
            raise ZeroDivisionError
        finally:
            close_logger(FailingLogger())


@pytest.mark.parametrize("obstacle", ["a folder of its name", "a full disk"])
def test_a_log_that_cannot_be_written_is_told_once(obstacle, tmp_path, capsys):
    if obstacle == "a full disk" and not Path("/dev/full").exists():
        pytest.skip("this system has no full disk to write to")
    if obstacle == "a folder of its name":
        (tmp_path / "run.log").mkdir()
    with pytest.raises(ZeroDivisionError), log_to_file(tmp_path):
        if obstacle == "a full disk":
            (handler,) = [handler for handler in logging.getLogger().handlers if "RunLog" in type(handler).__name__]
            handler.stream = Path("/dev/full").open("w")  # noqa: SIM115 (the handler closes it)
        for _ in range(3):
            logging.getLogger("gradfiltering.x").error("hello")
        raise ZeroDivisionError
    shown = capsys.readouterr()
    assert shown.out.count("cannot write") == 1 and "run.log" in shown.out and "lines are missing there" in shown.out
    assert "Traceback" not in shown.out + shown.err


@pytest.mark.parametrize(
    "address", ["s3://bucket/out", "memory://out", "file:///tmp/out", "gs:/bucket", "/work/s3:/bucket"]
)
def test_an_address_is_no_folder_for_results(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for use_folder in (Cache, lambda folder: hold_run_folder(Path(folder)).__enter__()):
        with pytest.raises(UserError, match="is an address, and results are written to a folder of this machine"):
            use_folder(address)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["a:b", "runs/12:30:00/x", "C:/runs", "C:\\runs", "/x=1,y=[a:b]/z", "seed:"])
def test_a_colon_makes_no_address(folder):
    refuse_address(folder)
