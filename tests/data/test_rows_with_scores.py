"""Scores from a file find their rows by id or by text, and a file about other rows is refused."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gradfiltering.data.rows_with_scores import read_row_scores
from gradfiltering.errors import UserError

ROWS = [
    ("Say one.", "", "1"),
    ("Say two.", "", "2"),
    ("Add.", "2 and 3", "5"),
    ("Say one.", "", "1"),
    ("Café", "", "a"),
]


@pytest.fixture
def dataset(make_records):
    return make_records(ROWS)


@pytest.fixture
def write(tmp_path):
    def write_rows(*rows):
        path = tmp_path / "chosen.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        return str(path)

    return write_rows


def as_row(number, **more):
    instruction, context, output = ROWS[number]
    return {"instruction": instruction, "input": context, "output": output, **more}


def test_rows_are_found_by_their_text_and_equal_ones_in_order(dataset, write):
    path = write(as_row(2, score=0.5), as_row(0, score=2), as_row(3, score=-1.0), as_row(4, score=4))
    np.testing.assert_array_equal(read_row_scores(dataset, path, "score"), [2, np.nan, 0.5, -1, 4])


def test_without_scores_the_file_lists_the_best_first(dataset, write):
    path = write(as_row(2), as_row(1))
    np.testing.assert_array_equal(read_row_scores(dataset, path, "score"), [np.nan, -1, 0, np.nan, np.nan])


def test_rows_are_found_by_id_and_scores_by_their_column(dataset, tmp_path):
    path = tmp_path / "scores.parquet"
    pq.write_table(pa.table({"example_id": [4, 1], "score": [9.0, 9.0], "ifd": [0.25, 0.5]}), path)
    np.testing.assert_array_equal(read_row_scores(dataset, str(path), "ifd"), [np.nan, 0.5, np.nan, np.nan, 0.25])
    csv = tmp_path / "scores.csv"
    csv.write_text("example_id,score\n0,1e-3\n3,-2\n", "utf-8")
    np.testing.assert_array_equal(read_row_scores(dataset, str(csv), "score"), [0.001, np.nan, np.nan, -2, np.nan])


@pytest.mark.parametrize(
    ("rows", "column", "words"),
    [
        ([{"example_id": 5}], "score", ["line 1", "'example_id' is 5", "0 to 4"]),
        ([{"example_id": 1}, {"example_id": -1}], "score", ["line 2", "-1"]),
        ([{"example_id": 0.5}], "score", ["0.5"]),
        ([{"example_id": 1}, {"example_id": 1}], "score", ["line 2", "row 1", "second time"]),
        ([as_row(1), as_row(1)], "score", ["line 2", "no further one"]),
        ([as_row(1) | {"output": "3"}], "score", ["line 1", "word for word"]),
        ([{"question": "Say two.", "score": 1}], "score", ["no column 'example_id'", "'instruction'"]),
        ([as_row(1, score="high")], "score", ["line 1", "'high'", "no finite number"]),
        ([as_row(1, score=float("nan"))], "score", ["no finite number"]),
        ([as_row(1, score=True)], "score", ["no finite number"]),
        ([as_row(1, score=1)], "ifd", ["no column 'ifd'", "score"]),
    ],
)
def test_a_file_about_other_rows_or_without_numbers_is_refused(dataset, write, rows, column, words):
    with pytest.raises(UserError) as refusal:
        read_row_scores(dataset, write(*rows), column)
    assert all(word in str(refusal.value) for word in words), refusal.value
