"""What ends a run, and what the screen says of it."""

import pytest
from tests.support.pipeline import TINY_RUN, run_train


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
    with pytest.raises(ZeroDivisionError):
        ending(capsys, monkeypatch, tmp_path, ZeroDivisionError("of all things"), "debug=true")


def test_interrupted_run_says_how_to_go_on(capsys, monkeypatch, tmp_path):
    code, shown = ending(capsys, monkeypatch, tmp_path, KeyboardInterrupt())
    assert code == "stopped; the same command goes on from what is finished" and not shown
