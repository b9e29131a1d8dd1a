import logging

import pytest

from gradfiltering.errors import UserError, plain_words
from gradfiltering.runs.logs import announce, log_to_file


def test_unexpected_error_leaves_its_stack_trace_in_the_log(tmp_path):
    with pytest.raises(ZeroDivisionError), log_to_file(tmp_path / "run"):
        divmod(1, 0)
    text = (tmp_path / "run" / "run.log").read_text("utf-8")
    assert "Traceback" in text and "ZeroDivisionError" in text


def test_unexpected_error_is_one_line_on_the_screen(tmp_path, capsys):
    with pytest.raises(SystemExit), plain_words(), log_to_file(tmp_path):
        divmod(1, 0)
    screen = " ".join(capsys.readouterr().err.split())
    assert screen.startswith("error unexpected ZeroDivisionError") and screen.endswith(str(tmp_path / "run.log"))


def test_debug_shows_the_trace_of_an_unexpected_error(tmp_path, capsys):
    with pytest.raises(SystemExit), plain_words(debug=True), log_to_file(tmp_path):
        divmod(1, 0)
    screen = capsys.readouterr().err
    assert screen.startswith("Traceback (most recent call last)") and "ZeroDivisionError" in screen


def test_user_error_is_logged_in_one_line(tmp_path):
    with pytest.raises(UserError), log_to_file(tmp_path):
        raise UserError("the file is empty")
    text = (tmp_path / "run.log").read_text("utf-8")
    assert text.count("\n") == 1 and text.endswith("the file is empty\n")


def test_level_decides_what_this_project_logs(tmp_path):
    logger = logging.getLogger("gradfiltering.somewhere")
    with log_to_file(tmp_path, "warning"):
        logger.info("small")
        logger.warning("large")
    logger.warning("after the run")
    text = (tmp_path / "run.log").read_text("utf-8")
    assert "large" in text and "small" not in text and "after" not in text


def test_unknown_level_is_refused(tmp_path):
    with pytest.raises(UserError, match="loud is unknown"), log_to_file(tmp_path, "loud"):
        pass


def test_announcements_are_printed_and_logged(tmp_path, capsys):
    with log_to_file(tmp_path):
        announce("waiting for process 7")
    assert capsys.readouterr().out == "waiting for process 7\n"
    assert "waiting for process 7" in (tmp_path / "run.log").read_text("utf-8")
