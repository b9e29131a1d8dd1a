from dataclasses import fields

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import scores as reference

from gradfiltering.errors import UserError
from gradfiltering.scorers.base import Evidence, Scores, write_unscored
from gradfiltering.scorers.gsnr import GSNR
from gradfiltering.scorers.raw_drop import RawDrop


@given(st.lists(st.sampled_from([-1.5, -0.0, 0.0, 0.25, 1e300]), min_size=1, max_size=12))
def test_ranks_break_ties_by_example_id(values):
    ids = np.arange(len(values)) * 3 + 1
    scores = Scores(ids, np.asarray(values))
    assert scores.rank.dtype == np.int64
    assert scores.rank.tolist() == reference.ranks(ids.tolist(), values)
    assert [scores.rank[position] for position in scores.order] == list(range(1, len(values) + 1))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(value):
    with pytest.raises(UserError, match=r"2 scores are not finite, first at rows \[5, 9\]"):
        Scores(np.asarray([2, 5, 9]), np.asarray([1.0, value, value]))


def test_file_has_the_contracts_columns_and_types(norms, evidence, tmp_path):
    scores = GSNR(1e-8, 0).score(evidence(*norms))
    scores.write(tmp_path / "scores.parquet")
    table = pq.read_table(tmp_path / "scores.parquet")
    assert {name: table.schema.field(name).type for name in table.column_names} == {
        "example_id": pa.int64(), "score": pa.float64(), "rank": pa.int64(),
        "g_early": pa.float64(), "g_late": pa.float64(), "variance_late": pa.float64(),
    }  # fmt: skip
    assert table["example_id"].to_pylist() == scores.example_ids.tolist()
    assert table["score"].to_pylist() == scores.score.tolist() and table["rank"].to_pylist() == scores.rank.tolist()
    assert table["variance_late"].to_pylist() == scores.columns["variance_late"].tolist()


def test_file_of_one_member_keeps_the_columns(norms, evidence, tmp_path):
    RawDrop(1e-8, 0).score(evidence(*(norm[:1] for norm in norms))).write(tmp_path / "scores.parquet")
    assert pq.read_schema(tmp_path / "scores.parquet").field("variance_late").type == pa.float64()


def test_a_scorer_cannot_see_the_planted_kinds():
    """All a scorer gets is the evidence; a field with the truth, or with the rows, would let it cheat."""
    assert {field.name for field in fields(Evidence)} == {"example_ids", "seed", "epochs", "gradient_log"}


@pytest.mark.parametrize("unscored", [[], [(3, "empty response"), (8, "no response token left")]])
def test_unscored_file(unscored, tmp_path):
    write_unscored(tmp_path / "unscored.parquet", unscored)
    table = pq.read_table(tmp_path / "unscored.parquet")
    assert table.schema.types == [pa.int64(), pa.string()], "types must hold for an empty table too"
    assert [tuple(row.values()) for row in table.to_pylist()] == unscored
