"""Pages of runs with more rows than a page is made of."""

import numpy as np
import pytest

from gradfiltering.reports.page import drawn_files
from gradfiltering.reports.page.drawn_files import DrawnRunFiles, open_run_files
from gradfiltering.reports.page.row_explorer import collect_row_data, sample_rows
from gradfiltering.reports.page.row_measurements import measure_rows
from gradfiltering.reports.page.run_page import write_page
from gradfiltering.reports.run_files import RunFiles
from tests.reports.page.runs import plain_rows, write_bare, write_chosen, write_log

ROWS, DRAWN, SHOWN = 400, 60, 40


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """A run of 400 rows of which a page draws 60; the forty of the highest number are selected."""
    monkeypatch.setattr(drawn_files, "MOST_ROWS_READ", DRAWN)
    rows = plain_rows(ROWS)
    folder = write_bare(tmp_path / "run", rows)
    write_log(folder, ROWS)
    write_chosen(folder, rows, list(range(360, 400)), np.arange(float(ROWS)))
    return folder


def test_the_best_the_worst_and_those_at_the_cut_are_read(run_folder):
    run_files = open_run_files(run_folder, SHOWN)
    assert isinstance(run_files, DrawnRunFiles) and len(run_files.drawn_ids) == DRAWN
    shown_ids = {*range(390, 400), *range(10), *range(350, 370)}  # ten of each, on both sides of the cut
    assert set(run_files.row_ids.tolist()) >= shown_ids
    assert len(run_files.row_ids) <= DRAWN + len(shown_ids) + 1
    sample = sample_rows(run_files, measure_rows(run_files), SHOWN)
    assert sample.part_counts == {"best": 10, "worst": 10, "at the cut": 10, "drawn at random": 10}
    whole_sample = sample_rows(RunFiles(run_folder), measure_rows(RunFiles(run_folder)), SHOWN)
    assert set(sample.example_ids[sample.example_ids >= 355]) >= {*range(390, 400)}
    assert {*range(390, 400), *range(10)} <= set(whole_sample.example_ids) & set(sample.example_ids)


def test_rows_that_are_read_have_the_numbers_they_have_among_all(run_folder):
    drawn_files_of_run, whole_files = open_run_files(run_folder, SHOWN), RunFiles(run_folder)
    drawn_rows, whole_rows = measure_rows(drawn_files_of_run), measure_rows(whole_files)
    row_ids = drawn_rows.row_ids
    for column in whole_rows.table:
        np.testing.assert_array_equal(drawn_rows.values(column), whole_rows.values(column)[row_ids], err_msg=column)
    np.testing.assert_array_equal(drawn_rows.selected, whole_rows.selected[row_ids])
    np.testing.assert_array_equal(drawn_rows.score_share, whole_rows.score_share[row_ids])
    assert drawn_rows.sources == [whole_rows.sources[row_id] for row_id in row_ids]
    assert drawn_files_of_run.last_selected_rank == whole_files.last_selected_rank == 40
    sample = sample_rows(drawn_files_of_run, drawn_rows, SHOWN)
    ours = collect_row_data(drawn_files_of_run, drawn_rows, sample, None)
    theirs = collect_row_data(whole_files, whole_rows, sample, None)
    assert ours["subset_rows"] == theirs["subset_rows"] == 40
    for part in ("id", "selected", "prompt", "response", "numbers", "source", "log"):
        assert ours[part] == theirs[part], part


def test_shares_are_of_the_rows_drawn_by_chance(run_folder):
    run_files = open_run_files(run_folder, SHOWN)
    drawn_rows = measure_rows(run_files).drawn
    assert drawn_rows.row_ids.tolist() == run_files.drawn_ids.tolist()
    assert drawn_rows.selected.mean() == np.mean(run_files.drawn_ids >= 360)


def test_the_page_says_that_its_charts_are_of_a_draw(run_folder):
    page = write_page(run_folder, SHOWN, figures=False).read_text("utf-8")
    assert "Charts, shares and examples are of 60 rows, drawn at random" in page
    assert "of all 400." in page and "rank 1 of 400" in page and "This page holds 40 of 400 rows" in page
    assert 'id="save-edited"' not in page, "rows that the page does not hold could not be saved"


def test_all_rows_are_read_where_all_are_to_be_shown(run_folder):
    page = write_page(run_folder, "all", figures=False).read_text("utf-8")
    assert "drawn at random" not in page and "All 400 rows are here" in page and 'id="save-edited"' in page
