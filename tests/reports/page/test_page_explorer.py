"""Which rows the page holds, and what it says of them."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.reports.page.runs import plain_rows, write_bare, write_chosen, write_log

from gradfiltering.reports.page.explorer import _clip, payload, sample
from gradfiltering.reports.page.folder import RunFolder
from gradfiltering.reports.page.table import row_table


@pytest.fixture
def hundred(tmp_path):
    rows = plain_rows(100)
    folder = write_bare(tmp_path / "run", rows)
    write_log(folder, 100)
    write_chosen(folder, rows, list(range(90, 100)), np.arange(100.0))
    return RunFolder(folder)


def test_best_worst_cut_and_a_random_sample(hundred):
    some = sample(hundred, row_table(hundred), 40, seed=0)
    assert some.parts == {"best": 10, "worst": 10, "at the cut": 10, "drawn at random": 10}
    held = set(some.example_ids.tolist())
    assert len(held) == 40 and set(range(90, 100)) <= held and set(range(10)) <= held
    assert set(range(80, 90)) <= held, "the best are in already, so the cut is seen from below"
    again = sample(hundred, row_table(hundred), 40, seed=0)
    assert again.example_ids.tolist() == some.example_ids.tolist()


@pytest.mark.parametrize("most", ["all", 100, 5000])
def test_all_rows_where_they_fit(hundred, most):
    some = sample(hundred, row_table(hundred), most, seed=0)
    assert some.example_ids.tolist() == list(range(100)) and not some.parts


def test_no_rows_at_all(hundred):
    some = sample(hundred, row_table(hundred), 0, seed=0)
    found = payload(hundred, row_table(hundred), some, None)
    assert found["id"] == [] and json.dumps(found, allow_nan=False)


def test_a_few_long_texts_are_cut_and_short_ones_stay_whole():
    assert _clip(np.array([10, 20, 30]), 60) is None
    assert _clip(np.array([10, 20, 1000]), 100) == 70
    assert _clip(np.array([50, 50]), 60) == 30
    lengths = np.random.default_rng(0).integers(0, 500, 200)
    clip = _clip(lengths, 20_000)
    assert 20_000 - 200 <= np.minimum(lengths, clip).sum() <= 20_000


def test_each_row_has_its_own_numbers_and_text(hundred):
    rows = row_table(hundred)
    stable = np.linspace(0, 1, 100)
    some = sample(hundred, rows, 40, seed=0)
    found = payload(hundred, rows, some, stable)
    for place, row in enumerate(found["id"]):
        assert found["prompt"][place] == f"Name number {row}." and found["response"][place] == f"It is {row}."
        assert found["kept"][place] == int(row >= 90) and found["numbers"]["rank"]["values"][place] == 100 - row
        assert found["source"]["names"][found["source"]["of"][place]] == "ab"[row % 2]
        assert found["numbers"]["stability"]["values"][place] == pytest.approx(stable[row], rel=1e-3)
        log = hundred.log
        start = place * 6
        for e, epoch in enumerate(log.epochs):
            got = found["log"]["grad_norm"][start + 3 * e : start + 3 * e + 3]
            assert got == pytest.approx(log.epoch(epoch).grad_norm[:, row], rel=1e-5)
    assert found["kind"] is None and found["log"]["members"] == [0, 1, 2]


def test_long_rows_are_cut_and_say_so(tmp_path):
    rows = [{"instruction": "i", "input": "", "output": "x" * 100_000}, *plain_rows(3)]
    run = RunFolder(write_bare(tmp_path / "run", rows))
    table = row_table(run)
    some = sample(run, table, 5000, seed=0)
    found = payload(run, table, some, None)
    assert found["clipped"] == {0: [0, 100_000]} and len(found["response"][0]) == some.clip < 2000
    whole = payload(run, table, sample(run, table, "all", seed=0), None)
    assert not whole["clipped"] and whole["response"][0] == "x" * 100_000


def test_a_row_without_a_score_comes_last_and_says_why(tmp_path):
    rows = plain_rows(10)
    folder = write_bare(tmp_path / "run", rows)
    write_chosen(folder, rows, [1], np.arange(10.0))
    scores = pq.read_table(folder / "scores.parquet").slice(1)
    pq.write_table(scores, folder / "scores.parquet")
    from gradfiltering.methods.subset_files import write_unscored

    write_unscored(folder / "unscored.parquet", [(0, "empty response")])
    run = RunFolder(folder)
    found = payload(run, row_table(run), sample(run, row_table(run), "all", 0), None)
    assert found["numbers"]["score"]["values"][0] is None and found["reason"] == {0: "empty response"}
