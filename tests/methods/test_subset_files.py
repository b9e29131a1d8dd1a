import datetime
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.data.file_formats import JSON_LINES
from gradfiltering.data.json_rows import JsonRows
from gradfiltering.data.schemas import Instruction
from gradfiltering.methods.subset_files import write_scores, write_subset
from gradfiltering.runs.run_folder import RunFolder
from gradfiltering.scorers.base import Scores

ROWS = [
    {"id": f"r{n}", "instruction": f"Say „{n}“ — 中", "input": None if n % 2 else "", "output": "a\nb\u2028c",
     "meta": {"tags": ["x"] * (n % 3), "weight": n / 2}, "n": n}
    for n in range(10)
]  # fmt: skip
SCORES = Scores(np.asarray([0, 1, 3, 6, 7, 9]), np.asarray([0.5, -1.0, 2.0, 0.0, 3.0, 1.5]))


SCHEMA = Instruction("alpaca", "instruction", "input", "output")


def records_of(rows):
    rows = rows if isinstance(rows, Dataset | JsonRows) else Dataset.from_list(rows)
    return InstructionDataset(rows, None, SCHEMA, None, frozenset(), "plain", "test rows", JSON_LINES)


def lines(folder):
    return [json.loads(line) for line in (folder / "subset.jsonl").read_text("utf-8").split("\n")[:-1]]


def test_rows_keep_every_field_and_the_order_of_the_input(tmp_path):
    write_subset(RunFolder(tmp_path), records_of(ROWS), [1, 3, 7], SCORES)
    assert lines(tmp_path) == [ROWS[1], ROWS[3], ROWS[7]]
    assert "中" in (tmp_path / "subset.jsonl").read_text("utf-8"), "text is to stay readable, not escaped"


def test_subset_loads_as_the_input_did(tmp_path):
    write_subset(RunFolder(tmp_path), records_of(ROWS), [0, 3, 9], SCORES)
    loaded = load_dataset(
        "json", data_files=str(tmp_path / "subset.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded.to_list() == [ROWS[0], ROWS[3], ROWS[9]]


def test_ids_and_scores_stand_beside_it(tmp_path):
    write_subset(RunFolder(tmp_path), records_of(ROWS), [1, 6, 9], SCORES)
    table = pq.read_table(tmp_path / "subset.parquet")
    assert table.schema.types == [pa.int64(), pa.float64()]
    assert table.to_pydict() == {"example_id": [1, 6, 9], "score": [-1.0, 0.0, 1.5]}


def test_without_scores_the_column_holds_nan(tmp_path):
    write_subset(RunFolder(tmp_path), records_of(ROWS), [2, 4], None)
    table = pq.read_table(tmp_path / "subset.parquet")
    assert table["example_id"].to_pylist() == [2, 4] and all(map(math.isnan, table["score"].to_pylist()))


def test_dates_of_hub_datasets_become_text(tmp_path):
    rows = Dataset.from_list(
        [{"output": "a", "made": datetime.datetime(2024, 5, 1, 12), "day": datetime.date(2024, 5, 1)}]
    )
    write_subset(RunFolder(tmp_path), records_of(rows), [0], None)
    assert lines(tmp_path) == [{"output": "a", "made": "2024-05-01T12:00:00", "day": "2024-05-01"}]


def test_scores_file_has_the_contracts_columns_and_types(tmp_path):
    columns = {name: np.asarray([0.5, 1.5]) for name in ("g_early", "g_late", "variance_late")}
    scores = Scores(np.asarray([0, 3]), np.asarray([1.0, 2.0]), columns)
    write_scores(RunFolder(tmp_path), scores, [(5, "empty response")])
    table = pq.read_table(tmp_path / "scores.parquet")
    assert {name: table.schema.field(name).type for name in table.column_names} == {
        "example_id": pa.int64(), "score": pa.float64(), "rank": pa.int64(),
        "g_early": pa.float64(), "g_late": pa.float64(), "variance_late": pa.float64(),
    }  # fmt: skip
    assert table["example_id"].to_pylist() == scores.example_ids.tolist()
    assert table["score"].to_pylist() == scores.score.tolist() and table["rank"].to_pylist() == scores.rank.tolist()
    assert table["variance_late"].to_pylist() == scores.columns["variance_late"].tolist()


@pytest.mark.parametrize("unscored", [[], [(3, "empty response"), (8, "no response token left")]])
def test_unscored_file(unscored, tmp_path):
    RunFolder(tmp_path).write_unscored(unscored)
    table = pq.read_table(tmp_path / "unscored.parquet")
    assert table.schema.types == [pa.int64(), pa.string()], "types must hold for an empty table too"
    assert [tuple(row.values()) for row in table.to_pylist()] == unscored


def test_rows_a_scorer_leaves_out_are_listed_with_the_others(tmp_path):
    scores = Scores(np.asarray([0, 3]), np.asarray([1.0, 2.0]), unscored=[(2, "a response of one token")])
    write_scores(RunFolder(tmp_path), scores, [(4, "empty response"), (1, "empty response")])
    found = [tuple(row.values()) for row in pq.read_table(tmp_path / "unscored.parquet").to_pylist()]
    assert found == [(1, "empty response"), (2, "a response of one token"), (4, "empty response")]
