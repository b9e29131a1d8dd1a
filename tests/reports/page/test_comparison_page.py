"""Two runs on the same rows, side by side."""

import html
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from gradfiltering.cli.commands import app
from gradfiltering.errors import UserError
from gradfiltering.reports.page.comparison_page import compare_options, count_overlap, write_comparison
from gradfiltering.reports.run_files import RunFiles
from tests.reports.page.runs import plain_rows, write_bare, write_chosen


def run_with(folder, selected_ids, scores, rows=40):
    data = plain_rows(rows)
    write_chosen(write_bare(folder, data), data, selected_ids, scores)
    return folder


@pytest.fixture
def two_runs(tmp_path):
    """Ten rows each of forty, five in common; B ranks in reverse."""
    scores = np.arange(40.0)
    first = run_with(tmp_path / "first", list(range(30, 40)), scores)
    return first, run_with(tmp_path / "second", list(range(25, 35)), -scores)


def words_of(page):
    return " ".join(html.unescape(re.sub(r"<(script|style)[^>]*>.*?</\1>|<[^>]+>", " ", page, flags=re.S)).split())


def test_the_page_states_overlap_chance_and_ranks(two_runs):
    page = write_comparison(*two_runs)
    assert page == two_runs[1] / "comparison.html"
    words = words_of(page.read_text("utf-8"))
    assert "5 rows are in both subsets, 5 only in A, 5 only in B." in words
    assert "By chance alone, 2.5 rows would be in both. They are 33 %" in words
    assert "Spearman correlation of -1.00" in words
    assert "Only in A: 5 rows Row 39 A: Its score is 39; rank 1 of 40." in words
    assert words.count("Not tested: no model was trained on the selected rows") == 2


def test_overlap_is_counted_beside_chance():
    first, second = np.arange(100) < 10, (np.arange(100) >= 5) & (np.arange(100) < 25)
    counts = count_overlap(first, second)
    assert counts == {"both": 5, "only_first": 5, "only_second": 15, "jaccard": 0.2, "expected": 2.0}


def test_only_options_that_change_results_are_listed(two_runs):
    first, second = (RunFiles(folder) for folder in two_runs)
    second.config["scorer"]["epsilon"] = 0.5
    second.config["report"]["rows"] = 7
    table = compare_options(first, second)
    assert table.to_dict("index") == {"scorer.epsilon": {"A": "1e-08", "B": "0.5"}}


def test_runs_on_other_rows_are_refused(tmp_path, two_runs):
    other = run_with(tmp_path / "other", [1], np.arange(12.0), rows=12)
    with pytest.raises(UserError, match="on different rows"):
        write_comparison(two_runs[0], other)
    with pytest.raises(UserError, match="selected no rows"):
        write_comparison(two_runs[0], write_bare(tmp_path / "bare", plain_rows(40)))


def test_the_command_writes_the_page_where_it_is_told(tmp_path, two_runs):
    result = CliRunner().invoke(app, ["compare", *map(str, two_runs), "--output", str(tmp_path / "both.html")])
    assert result.exit_code == 0 and (tmp_path / "both.html").is_file(), result.output
