"""Rows to find settings on, and rows to report on: divided by what they ask, whatever their order and number."""

import json
import random

import numpy as np
import pytest

from gradfiltering.data.encoder import OTHER_PART, Encoder
from gradfiltering.data.sources import FileSource, Heldout
from gradfiltering.data.study_part import StudyPart
from gradfiltering.errors import UserError
from tests.data.test_sources import NOTHING, PLANTED
from tests.support.small_datasets import COLUMNS

TUNING, REPORTING = StudyPart("tuning"), StudyPart("reporting")


def make_rows(count):
    return [{"instruction": f"Question {n}", "input": "", "output": f"Answer {n}"} for n in range(count)]


def load(folder, rows, part, heldout=None, limit=None, corrupt=NOTHING, seed=0):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FileSource(
        limit=limit, template="alpaca", schema="auto", columns=COLUMNS, heldout=heldout or Heldout(None, 0, 0.0),
        corrupt=corrupt, path=str(path), study_part=part,
    ).load(seed)  # fmt: skip


def used_questions(dataset):
    return {row["instruction"] for index, row in enumerate(dataset.rows) if index not in dataset.other_part}


def heldout_questions(dataset):
    return {row["instruction"] for row in dataset.heldout or ()}


def test_each_row_is_in_one_part_whatever_the_order_and_the_others(tmp_path):
    rows = make_rows(400)
    tuning, reporting = (used_questions(load(tmp_path, rows, part)) for part in (TUNING, REPORTING))
    assert tuning | reporting == {row["instruction"] for row in rows} and not tuning & reporting
    some_rows = random.Random(0).sample(rows, 150)
    questions = {row["instruction"] for row in some_rows}
    assert used_questions(load(tmp_path, some_rows, TUNING)) == tuning & questions
    # 400 rows at a share of a half: a standard deviation of ten.
    assert 160 < len(tuning) < 240


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_the_share_is_that_of_the_rows(share):
    part = StudyPart("tuning", share)
    numbers = np.asarray([part.draw_number(f"Question {n}") for n in range(4000)])
    assert (numbers < share).mean() == pytest.approx(share, abs=4 * (share * (1 - share) / 4000) ** 0.5)
    assert numbers.min() >= 0 and numbers.max() < 1


def test_another_seed_divides_anew_and_the_runs_seed_does_not(tmp_path):
    rows = make_rows(200)
    first = used_questions(load(tmp_path, rows, TUNING))
    assert used_questions(load(tmp_path, rows, TUNING, seed=5)) == first
    assert used_questions(load(tmp_path, rows, StudyPart("tuning", 0.5, 1))) != first


def test_rows_that_ask_the_same_stand_together(tmp_path):
    rows = [{"instruction": f"Question {n % 40}", "input": "", "output": f"Answer {n}"} for n in range(200)]
    tuning, reporting = (used_questions(load(tmp_path, rows, part)) for part in (TUNING, REPORTING))
    assert not tuning & reporting and len(tuning | reporting) == 40


@pytest.mark.parametrize(
    ("heldout", "limit"), [(Heldout(None, 0, 0.2), None), (Heldout(None, 30, 0.0), 100), ("file", None)]
)
def test_held_out_rows_are_of_the_same_part(tmp_path, heldout, limit):
    rows = make_rows(200)
    if heldout == "file":
        path = tmp_path / "heldout.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in make_rows(300)[200:]))
        heldout = Heldout(str(path), 0, 0.0)
    tuning, reporting = (load(tmp_path, rows, part, heldout, limit) for part in (TUNING, REPORTING))
    assert heldout_questions(tuning) and heldout_questions(reporting)
    used = [used_questions(dataset) | heldout_questions(dataset) for dataset in (tuning, reporting)]
    assert not used[0] & used[1]
    assert len(tuning) == (limit or 200), "rows of the other part stay, so that positions are those of the input"


def test_budgets_count_the_part_and_the_others_are_listed_as_unscored(tmp_path, tokenizer, cache):
    dataset = load(tmp_path, make_rows(40), TUNING)
    assert dataset.counted_rows == len(used_questions(dataset)) == 40 - len(dataset.other_part)
    examples = Encoder(tokenizer, 512, cache).encode(dataset)
    assert dict(examples.unscored) == dict.fromkeys(sorted(dataset.other_part), OTHER_PART)
    assert not set(examples.example_ids.tolist()) & dataset.other_part


def test_defects_are_those_of_a_run_on_all_rows(tmp_path):
    parts = [load(tmp_path, make_rows(60), part, corrupt=PLANTED) for part in (TUNING, REPORTING, StudyPart())]
    assert parts[0].kinds == parts[1].kinds == parts[2].kinds
    assert parts[0].other_part | parts[1].other_part == set(range(60)), "by what rows asked before"


def test_all_rows_is_the_default_and_leaves_none_out(tmp_path):
    dataset = load(tmp_path, make_rows(20), StudyPart())
    assert dataset.other_part == frozenset() and dataset.counted_rows == 20


def test_a_part_without_rows_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no row of .* is of the part for tuning"):
        load(tmp_path, make_rows(3), StudyPart("tuning", 1e-9))
