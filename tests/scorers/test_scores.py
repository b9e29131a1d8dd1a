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
    scores.write(tmp_path, [(5, "empty response")])
    table = pq.read_table(tmp_path / "scores.parquet")
    assert {name: table.schema.field(name).type for name in table.column_names} == {
        "example_id": pa.int64(), "score": pa.float64(), "rank": pa.int64(),
        "g_early": pa.float64(), "g_late": pa.float64(), "variance_late": pa.float64(),
    }  # fmt: skip
    assert table["example_id"].to_pylist() == scores.example_ids.tolist()
    assert table["score"].to_pylist() == scores.score.tolist() and table["rank"].to_pylist() == scores.rank.tolist()
    assert table["variance_late"].to_pylist() == scores.columns["variance_late"].tolist()


def test_file_of_one_member_keeps_the_columns(norms, evidence, tmp_path):
    RawDrop(1e-8, 0).score(evidence(*(norm[:1] for norm in norms))).write(tmp_path, [])
    assert pq.read_schema(tmp_path / "scores.parquet").field("variance_late").type == pa.float64()


def test_a_scorer_cannot_see_the_planted_kinds():
    """All a scorer gets is the evidence; a field with the truth, or with the records, would let it cheat."""
    assert {field.name for field in fields(Evidence)} == {
        "example_ids", "seed", "epochs", "gradient_log", "observed", "projections", "examples", "sources",
        "influences",
    }  # fmt: skip


@pytest.mark.parametrize("unscored", [[], [(3, "empty response"), (8, "no response token left")]])
def test_unscored_file(unscored, tmp_path):
    write_unscored(tmp_path / "unscored.parquet", unscored)
    table = pq.read_table(tmp_path / "unscored.parquet")
    assert table.schema.types == [pa.int64(), pa.string()], "types must hold for an empty table too"
    assert [tuple(row.values()) for row in table.to_pylist()] == unscored


def test_rows_a_scorer_leaves_out_are_listed_with_the_others(tmp_path):
    scores = Scores(np.asarray([0, 3]), np.asarray([1.0, 2.0]), unscored=[(2, "a response of one token")])
    scores.write(tmp_path, [(4, "empty response"), (1, "empty response")])
    found = [tuple(row.values()) for row in pq.read_table(tmp_path / "unscored.parquet").to_pylist()]
    assert found == [(1, "empty response"), (2, "a response of one token"), (4, "empty response")]


def test_evidence_among_some_rows_is_about_them():
    from gradfiltering.ensembles.snapshots import SnapshotPair
    from gradfiltering.evidence.base_model import Observed, PromptedAndAloneLosses, ResponseLosses
    from gradfiltering.evidence.gradient_log import BaseModelLosses

    need, ids = ResponseLosses("plain", 8), np.asarray([0, 2, 3, 9])
    values = np.arange(4.0)
    paired = {need: PromptedAndAloneLosses(values, values + 1, {1: "cut", 3: "short"})}
    observed = Observed(BaseModelLosses(values, 7.0), values * 2, values[:, None], paired)
    whole = Evidence(ids, 0, SnapshotPair(1, 2), None, observed, np.arange(8.0).reshape(2, 4, 1))
    some = whole.among([9, 0])
    assert some.example_ids.tolist() == [0, 9] and some.observed.losses.pool.tolist() == [0, 3]
    assert some.observed.el2n.tolist() == [0, 6] and some.observed.embeddings.tolist() == [[0], [3]]
    assert some.projections.tolist() == [[[0], [3]], [[4], [7]]]
    assert some.observed.answers[need].reasons == {1: "short"}
    assert some.observed.answers[need].alone.tolist() == [1, 4]


def test_projections_that_nobody_made_are_an_error():
    from gradfiltering.ensembles.snapshots import SnapshotPair

    with pytest.raises(UserError, match="made no projections"):
        Evidence(np.arange(2), 0, SnapshotPair(1, 2)).member_projections()
