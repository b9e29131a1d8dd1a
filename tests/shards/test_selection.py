from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gradfiltering.errors import UserError
from gradfiltering.scorers.gsnr import GSNR
from gradfiltering.scorers.length import LengthScorer
from gradfiltering.selectors.random import RandomSelector
from gradfiltering.selectors.spice import SpiceSelector
from gradfiltering.selectors.stratified import StratifiedSelector
from gradfiltering.selectors.top import TopSelector
from gradfiltering.shards import scoring
from gradfiltering.shards.scoring import score_log
from gradfiltering.shards.selection import find_strata, select_in_memory, select_stored_rows

TOTAL_ROWS = 2100  # of the dataset; 700 of them are in the log
SELECTORS = [
    TopSelector(0.1),
    TopSelector(0.9),  # more than there are
    *[
        StratifiedSelector(None, 150, by, strata, quota)
        for by in ("length", "source")
        for strata in (1, 7)
        for quota in ("proportional", "equal")
    ],
]


@pytest.fixture
def rows_file(tmp_path, evidence):
    sources = [["web", "books", "forum", None][row % 4 if row % 3 else 0] for row in evidence.example_ids.tolist()]
    pq.write_table(pa.table({"example_id": evidence.example_ids, "source": sources}), tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


@pytest.mark.parametrize("scorer", [GSNR(), LengthScorer()], ids=lambda scorer: type(scorer).__name__)
@pytest.mark.parametrize("selector", SELECTORS, ids=str)
def test_rows_on_disk_are_selected_as_rows_in_memory(
    selector, scorer, compared_log, evidence, rows_file, connection, tmp_path
):
    sources = np.asarray([source or "" for source in pq.read_table(rows_file)["source"].to_pylist()])
    expected = selector.select(replace(evidence, sources=sources), TOTAL_ROWS, scorer.score(evidence))
    scored_log = score_log(scorer, compared_log, tmp_path, 100)
    subset_file = tmp_path / "subset.parquet"
    selection = select_stored_rows(selector, connection, scored_log.scored_file, TOTAL_ROWS, subset_file, rows_file)
    subset = pq.read_table(subset_file)
    assert subset["example_id"].to_pylist() == expected.example_ids
    assert (selection.row_count, selection.facts) == (len(expected.example_ids), expected.facts)
    scores = scorer.score(evidence).select_rows(expected.example_ids).score
    np.testing.assert_array_equal(subset["score"].to_numpy(), scores)


def test_sources_are_asked_for_where_rows_name_none(compared_log, connection, tmp_path):
    scored_file = score_log(GSNR(), compared_log, tmp_path).scored_file
    with pytest.raises(UserError, match="no column 'source'"):
        select_stored_rows(StratifiedSelector(by="source"), connection, scored_file, 700, tmp_path / "subset.parquet")


def test_a_selector_without_strata_gets_all_rows_up_to_a_limit(compared_log, evidence, tmp_path, monkeypatch):
    selector = RandomSelector(None, 50)
    assert find_strata(selector) is None and find_strata(StratifiedSelector(by="cluster")) is None
    scored_file = score_log(GSNR(), compared_log, tmp_path).scored_file
    selected = select_in_memory(selector, compared_log, scored_file, 700)
    assert selected.example_ids == selector.select(evidence, 700, None).example_ids
    monkeypatch.setattr(scoring, "MOST_ROWS_AT_ONCE", 100)
    with pytest.raises(UserError, match=r"RandomSelector compares rows .* all 700 .* takes 100 at most"):
        select_in_memory(selector, compared_log, scored_file, 700)


def test_a_selector_that_reads_more_than_the_log_is_refused(compared_log, tmp_path):
    scored_file = score_log(GSNR(), compared_log, tmp_path).scored_file
    with pytest.raises(UserError, match="SpiceSelector reads Projections"):
        select_in_memory(SpiceSelector(), compared_log, scored_file, 700)
