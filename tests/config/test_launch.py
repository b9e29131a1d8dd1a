"""What ends a run, and what the screen says of it."""

import os
import signal
import time

import pytest

from gradfiltering import interruption
from gradfiltering.interruption import ending_in_one_sentence
from tests.support.pipeline import TINY_RUN, run_train
from tests.support.processes import finish, start


def ending(capsys, monkeypatch, tmp_path, error, *overrides):
    def fail(*_):
        raise error

    monkeypatch.setattr("gradfiltering.experiment.run.measure_rows", fail)
    folders = [f"run_dir={tmp_path / 'run'}", f"hydra.run.dir={tmp_path / 'run'}", f"cache.path={tmp_path / 'cache'}"]
    with pytest.raises(SystemExit) as ended:
        run_train(*folders, *TINY_RUN, *overrides)
    return ended.value.code, " ".join(capsys.readouterr().err.split())


def test_unexpected_error_is_one_line_and_its_trace_is_logged(capsys, monkeypatch, tmp_path):
    code, shown = ending(capsys, monkeypatch, tmp_path, ZeroDivisionError("of all things"))
    log_path = tmp_path / "run" / "run.log"
    assert code == 1 and "Traceback" not in shown
    assert "unexpected ZeroDivisionError: of all things" in shown and str(log_path) in shown
    trace = log_path.read_text("utf-8")
    assert trace.count("Traceback (most recent call last)") == 1 and "in fail" in trace


def test_debug_keeps_the_trace_on_the_screen(capsys, monkeypatch, tmp_path):
    code, shown = ending(capsys, monkeypatch, tmp_path, ZeroDivisionError("of all things"), "debug=true")
    assert code == 1 and shown.startswith("Traceback (most recent call last)")
    assert "in fail" in shown and "ZeroDivisionError: of all things" in shown


STOPPED = "stopped; what is finished is saved in the cache, and the same command goes on from there"


def test_interrupted_run_says_how_to_go_on(capsys, monkeypatch, tmp_path):
    code, shown = ending(capsys, monkeypatch, tmp_path, KeyboardInterrupt())
    assert code == 130 and shown == STOPPED


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("swallowed", [False, True])
def test_a_signal_ends_a_run_with_one_sentence(number, status, swallowed, capsys, monkeypatch, tmp_path):
    def stop(*_):
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        except KeyboardInterrupt as interrupt:
            if swallowed:  # as libraries do that turn every error into their own
                raise ImportError("half a module") from interrupt
            raise

    monkeypatch.setattr("gradfiltering.runs.environment.git_commit", stop)
    code, shown = ending(capsys, monkeypatch, tmp_path, AssertionError("the run went on"))
    assert code == status and shown == STOPPED


class Careless:
    """Meets the signal where Python drops every error."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        os.kill(os.getpid(), self.number)
        time.sleep(0.01)  # the handler runs here


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_python_drops_ends_a_run_all_the_same(number, status, capsys):
    with pytest.raises(SystemExit) as ended, ending_in_one_sentence():
        careless = Careless(number)
        del careless
        time.sleep(30)
    assert ended.value.code == status and capsys.readouterr().err.strip() == STOPPED


def test_a_second_signal_interrupts_an_end_that_takes_long(monkeypatch, capsys):
    monkeypatch.setattr(interruption, "PATIENCE_SECONDS", 0)
    with pytest.raises(SystemExit) as ended, ending_in_one_sentence():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(30)
        finally:
            time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
    assert ended.value.code == 130 and capsys.readouterr().err.strip() == STOPPED


def test_errors_in_del_are_shown_as_ever(capsys):
    class Failing:
        def __del__(self):
            raise ZeroDivisionError

    with ending_in_one_sentence():
        failing = Failing()
        del failing
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_the_trace_of_a_stopped_run_is_in_its_log(capsys, monkeypatch, tmp_path):
    ending(capsys, monkeypatch, tmp_path, KeyboardInterrupt())
    log = (tmp_path / "run" / "run.log").read_text("utf-8")
    assert "the run was stopped" in log and "KeyboardInterrupt" in log


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("moment", [0.3, 1.0, 3.0, 6.0, 9.0])
@pytest.mark.parametrize("command", [[], ["-m", "seed=0,1"]])
def test_a_real_process_stops_at_any_moment(number, status, moment, command, tmp_path):
    folders = [f"hydra.run.dir={tmp_path / 'r'}", f"hydra.sweep.dir={tmp_path / 's'}", f"cache.path={tmp_path / 'c'}"]
    process = start(tmp_path / "tmp", "train.py", *command, *folders, "logger=none")
    time.sleep(moment)
    process.send_signal(number)
    done = finish(process)
    if moment < 0.5 and done.returncode == -number:
        return  # Python itself was not up yet
    assert done.returncode == status and "Traceback" not in done.stdout + done.stderr
    assert done.stderr.strip().endswith(STOPPED)
