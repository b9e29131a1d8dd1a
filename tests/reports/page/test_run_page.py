"""The whole page: what each kind of run shows, and what it says was not run."""

import html
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from gradfiltering.errors import UserError
from gradfiltering.reports.page.answer_section import check_diagnostics, interpret_interval, split_warning
from gradfiltering.reports.page.run_page import write_page
from gradfiltering.reports.page.training_savings import estimate_savings
from gradfiltering.reports.run_files import RunFiles
from tests.reports.page.runs import WARNING, plain_rows, write_bare, write_chosen, write_log


def text_of(folder, rows=5000):
    return html.unescape(write_page(folder, rows, figures=False).read_text("utf-8"))


def embedded(page, name):
    return json.loads(re.search(rf'id="{name}">(.*?)</script>', page, re.S)[1])


def test_a_run_on_a_part_of_the_rows_says_what_its_share_is_of(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "part")
    run_summary = json.loads((folder / "summary.json").read_text("utf-8"))
    run_summary["counted_rows"] = 20
    run_summary["selection"] |= {"fraction": 0.5}
    (folder / "summary.json").write_text(json.dumps(run_summary), encoding="utf-8")
    assert "10 of 20 rows taken from 40 (50%) were selected: the best by gsnr." in text_of(folder)
    assert estimate_savings(RunFiles(folder))[0].saved_share == 0.5


def test_a_whole_run_answers_every_question(whole):
    page = text_of(whole)
    assert "10 of 40 rows (25%) were selected: the best by gsnr." in page
    assert "PWS</dfn> 1.200" in page and "[1.050, 1.300]" in page and "the whole interval lies above 1 for" in page
    assert "Raise selector.fraction" in page and WARNING.split(";")[0] in page
    for chart in (
        "pws", "norms", "variance", "score", "drop_by_length", "kept_by_length", "kinds", "sources", "trajectories",
        "collapse", "heldout", "stability", "heldout_examples", "train_seconds",
    ):  # fmt: skip
        assert chart in embedded(page, "charts")["drawings"], chart
    assert "@misc{yuan2026gradfiltering," in page and "python train.py data=file" in page
    assert "Not in this run" not in page


def test_the_same_run_gives_the_same_page(whole):
    assert text_of(whole) == text_of(whole)


def test_a_run_that_only_read_its_rows_says_what_was_not_run(bare):
    page = text_of(bare)
    for words in (
        "No gradients were logged",
        "No row was scored",
        "No rows were selected",
        "No target",
        "Nothing was judged",
    ):
        assert words in page
    assert embedded(page, "charts")["drawings"] == {} and embedded(page, "rows")["prompt"][3] == "Name number 3."


def test_a_run_that_read_nothing_has_a_page(tmp_path):
    folder = write_bare(tmp_path / "run", [])
    assert "No row was read" in text_of(folder)


def test_without_gradients_the_choice_is_still_shown(bare):
    write_chosen(bare, plain_rows(12), [1, 2, 3], np.arange(12.0))
    charts = embedded(text_of(bare), "charts")["drawings"]
    assert {"score", "kept_by_length"} <= set(charts) and not {"norms", "variance", "stability"} & set(charts)


def test_without_scores_the_chosen_rows_are_still_shown(bare):
    write_chosen(bare, plain_rows(12), [1, 2, 3], None)
    page = text_of(bare)
    assert sum(embedded(page, "rows")["selected"]) == 3 and "3 of 12 rows (25%) were selected: top." in page


def test_one_member_has_norms_and_no_variance(bare):
    write_log(bare, 12, members=1)
    page = text_of(bare)
    charts = embedded(page, "charts")["drawings"]
    assert "one member" in page and "norms" in charts and "variance" not in charts


def test_a_run_without_texts_says_so_and_shows_the_numbers(bare):
    (bare / "rows.parquet").unlink()
    write_chosen(bare, plain_rows(12), [1, 5], np.arange(12.0))
    page = text_of(bare)
    rows = embedded(page, "rows")
    assert rows["prompt"] == [None] * 12 and rows["numbers"]["score"]["values"][5] == 5
    assert "left no text of its rows" in page


def test_the_command_writes_a_page_with_so_many_rows(bare):
    command = [sys.executable, "-m", "gradfiltering", "report", "page", str(bare), "--rows", "5", "--no-figures"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(embedded((bare / "report.html").read_text("utf-8"), "rows")["id"]) == 5
    assert not (bare / "figures").exists()


@pytest.mark.parametrize("rows", ["some", "-1", "1.5"])
def test_a_number_of_rows_that_is_none_is_refused(bare, rows):
    with pytest.raises(UserError, match="rows"):
        write_page(bare, rows, figures=False)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="give the folder of a run"):
        RunFiles(tmp_path)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (1.01, 1.2, "the whole interval lies above 1"),
        (0.8, 0.99, "the whole interval lies below 1"),
        (0.9, 1.1, "the interval holds 1"),
        (None, None, "no interval"),
    ],
)
def test_an_interval_in_words(low, high, word):
    assert interpret_interval({"value": 1.0, "low": low, "high": high}).startswith(word)


def test_a_warning_is_split_from_its_remedy():
    assert split_warning("it is low (limit 2); raise it") == ("it is low (limit 2)", "Raise it")
    assert split_warning("it is 0.5 low. Raise it. Or not") == ("it is 0.5 low", "Raise it. Or not")
    assert split_warning("mind") == ("mind", "")


def test_diagnostics_stand_beside_their_limits(whole):
    checks = check_diagnostics(RunFiles(whole))["result"]
    found = {question.split("?")[0]: words == "within the limit" for question, words in checks.items()}
    assert found["Did gradient norms fall"] is True and found["Do the members disagree"] is False
    assert found["Does the score follow length"] is False, "the limit is on the size of the correlation"
