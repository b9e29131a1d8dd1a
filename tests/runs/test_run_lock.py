"""Two runs never write into one folder at once."""

import subprocess
import sys
from pathlib import Path

import pytest

from gradfiltering.errors import UserError
from gradfiltering.runs.run_lock import LOCK_FILE, hold_run_folder

HOLDER = """
import sys, time
from pathlib import Path
from gradfiltering.runs.run_lock import hold_run_folder
with hold_run_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_run_in_the_folder_is_refused(tmp_path):
    run_folder = tmp_path / "new" / "run"
    refusal = pytest.raises(UserError, match=f"another run is writing into {run_folder}")
    with hold_run_folder(run_folder), refusal, hold_run_folder(run_folder):
        pytest.fail("two runs hold one folder")
    assert list(run_folder.iterdir()) == []
    with hold_run_folder(run_folder):
        assert [path.name for path in run_folder.iterdir()] == [LOCK_FILE]


def test_an_error_frees_the_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), hold_run_folder(tmp_path):
        raise ZeroDivisionError
    with hold_run_folder(tmp_path):
        pass


def test_a_killed_run_frees_the_folder(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another run"), hold_run_folder(tmp_path):
            pytest.fail("two runs hold one folder")
        process.kill()
        process.wait()
    with hold_run_folder(tmp_path):
        pass


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path):
    outside, run_folder = tmp_path / "outside", tmp_path / "run"
    outside.write_text("mine")
    run_folder.mkdir()
    (run_folder / LOCK_FILE).symlink_to(outside)
    with hold_run_folder(run_folder):
        assert not (run_folder / LOCK_FILE).is_symlink()
    assert outside.read_text() == "mine"


def test_an_error_is_not_hidden_by_cleaning_up(tmp_path, monkeypatch):
    def refuse(path, missing_ok=False):
        raise PermissionError("read-only")

    with pytest.raises(ZeroDivisionError), hold_run_folder(tmp_path):
        monkeypatch.setattr(Path, "unlink", refuse)
        raise ZeroDivisionError
