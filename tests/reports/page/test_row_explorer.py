"""Which rows the page holds, and what it says of them."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from gradfiltering.reports.page.row_explorer import collect_row_data, limit_text_length, sample_rows
from gradfiltering.reports.page.row_measurements import measure_rows
from gradfiltering.reports.run_files import RunFiles
from gradfiltering.runs.run_folder import RunFolder
from tests.reports.page.runs import plain_rows, write_bare, write_chosen, write_log


@pytest.fixture
def hundred(tmp_path):
    rows = plain_rows(100)
    folder = write_bare(tmp_path / "run", rows)
    write_log(folder, 100)
    write_chosen(folder, rows, list(range(90, 100)), np.arange(100.0))
    return RunFiles(folder)


def test_best_worst_cut_and_a_random_sample(hundred):
    some = sample_rows(hundred, measure_rows(hundred), 40)
    assert some.part_counts == {"best": 10, "worst": 10, "at the cut": 10, "drawn at random": 10}
    held = set(some.example_ids.tolist())
    assert len(held) == 40 and set(range(90, 100)) <= held and set(range(10)) <= held
    assert set(range(80, 90)) <= held, "the best are in already, so the cut is seen from below"
    again = sample_rows(hundred, measure_rows(hundred), 40)
    assert again.example_ids.tolist() == some.example_ids.tolist()


@pytest.mark.parametrize("most", ["all", 100, 5000])
def test_all_rows_where_they_fit(hundred, most):
    some = sample_rows(hundred, measure_rows(hundred), most)
    assert some.example_ids.tolist() == list(range(100)) and not some.part_counts


def test_no_rows_at_all(hundred):
    some = sample_rows(hundred, measure_rows(hundred), 0)
    found = collect_row_data(hundred, measure_rows(hundred), some, None)
    assert found["id"] == [] and json.dumps(found, allow_nan=False)


def test_a_few_long_texts_are_cut_and_short_ones_stay_whole():
    assert limit_text_length(np.array([10, 20, 30]), 60) is None
    assert limit_text_length(np.array([10, 20, 1000]), 100) == 70
    assert limit_text_length(np.array([50, 50]), 60) == 30
    lengths = np.random.default_rng(0).integers(0, 500, 200)
    clip = limit_text_length(lengths, 20_000)
    assert 20_000 - 200 <= np.minimum(lengths, clip).sum() <= 20_000


def test_each_row_has_its_own_numbers_and_text(hundred):
    rows = measure_rows(hundred)
    stable = np.linspace(0, 1, 100)
    some = sample_rows(hundred, rows, 40)
    found = collect_row_data(hundred, rows, some, stable)
    for place, row in enumerate(found["id"]):
        assert found["prompt"][place] == f"Name number {row}." and found["response"][place] == f"It is {row}."
        assert found["selected"][place] == int(row >= 90) and found["numbers"]["rank"]["values"][place] == 100 - row
        assert found["source"]["names"][found["source"]["indices"][place]] == "ab"[row % 2]
        assert found["numbers"]["stability"]["values"][place] == pytest.approx(stable[row], rel=1e-3)
        log = hundred.gradient_log
        start = place * 6
        for e, epoch in enumerate(log.epochs):
            got = found["log"]["grad_norm"][start + 3 * e : start + 3 * e + 3]
            assert got == pytest.approx(log.epoch(epoch).grad_norm[:, row], rel=1e-5)
    assert found["kind"] is None and found["log"]["members"] == [0, 1, 2]


def test_long_rows_are_cut_and_say_so(tmp_path):
    rows = [{"instruction": "i", "input": "", "output": "x" * 100_000}, *plain_rows(3)]
    run = RunFiles(write_bare(tmp_path / "run", rows))
    table = measure_rows(run)
    some = sample_rows(run, table, 5000)
    found = collect_row_data(run, table, some, None)
    assert found["cut"] == {0: [0, 100_000]} and len(found["response"][0]) == some.longest_texts["response"] < 2000
    whole = collect_row_data(run, table, sample_rows(run, table, "all"), None)
    assert not whole["cut"] and whole["response"][0] == "x" * 100_000


def test_a_row_without_a_score_comes_last_and_says_why(tmp_path):
    rows = plain_rows(10)
    folder = write_bare(tmp_path / "run", rows)
    write_chosen(folder, rows, [1], np.arange(10.0))
    scores = pq.read_table(folder / "scores.parquet").slice(1)
    pq.write_table(scores, folder / "scores.parquet")
    RunFolder(folder).write_unscored([(0, "empty response")])
    run = RunFiles(folder)
    found = collect_row_data(run, measure_rows(run), sample_rows(run, measure_rows(run), "all"), None)
    assert found["numbers"]["score"]["values"][0] is None and found["reason"] == {0: "empty response"}


def test_a_row_tells_its_signs_of_poor_quality(tmp_path):
    folder = write_bare(tmp_path / "run", plain_rows(3))
    signs = {"one_word_answer": np.array([False, True, False]), "refusal": np.array([False, True, True])}
    RunFolder(folder).write_hygiene(signs)
    run = RunFiles(folder)
    found = collect_row_data(run, measure_rows(run), sample_rows(run, measure_rows(run), "all"), None)
    assert found["signs"] == {1: "one word answer, refusal", 2: "refusal"}
