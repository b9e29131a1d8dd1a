import numpy as np
import pyarrow.parquet as pq
import pytest

from gradfiltering.errors import UserError
from gradfiltering.requests import EpochLog
from gradfiltering.runs.gradient_log import GradientLogReader
from gradfiltering.scorers.grad_norm import GradNorm
from gradfiltering.scorers.gsnr import GSNR
from gradfiltering.scorers.gsnr_rank import RankGSNR
from gradfiltering.scorers.learnability import Learnability
from gradfiltering.scorers.length import LengthScorer
from gradfiltering.scorers.length_controlled import LengthControlled
from gradfiltering.scorers.loss import LossScorer
from gradfiltering.scorers.raw_drop import RawDrop
from gradfiltering.shards import scoring
from gradfiltering.shards.scoring import ComparedLog, check_requests, score_log, write_ranked_scores
from tests.support.gradient_logs import write_epoch

SCORERS = [GSNR(), RawDrop(), GradNorm(), Learnability(), LengthScorer(), RankGSNR(), LengthControlled()]


@pytest.mark.parametrize("scorer", SCORERS, ids=lambda scorer: type(scorer).__name__)
@pytest.mark.parametrize("piece_rows", [64, 10_000])
def test_pieces_score_and_rank_as_all_rows_at_once(scorer, piece_rows, compared_log, evidence, connection, tmp_path):
    scored_log = score_log(scorer, compared_log, tmp_path, piece_rows)
    write_ranked_scores(connection, scored_log, tmp_path / "scores.parquet")
    stored, expected = pq.read_table(tmp_path / "scores.parquet"), scorer.score(evidence)
    assert stored.column_names == ["example_id", "score", "rank", *expected.columns]
    for name, values in {
        "example_id": expected.example_ids, "score": expected.score, "rank": expected.rank, **expected.columns
    }.items():  # fmt: skip
        np.testing.assert_array_equal(stored[name].to_numpy(), values, err_msg=name)
    assert scored_log.row_count == len(expected.score) and scored_log.unscored == []
    assert len(np.unique(expected.score)) < len(expected.score), "ties are what ranks may get wrong"


def test_a_global_scorer_takes_so_many_rows_and_says_so(compared_log, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "MOST_ROWS_AT_ONCE", 699)
    with pytest.raises(UserError, match=r"RankGSNR compares rows .* all 700 must be in memory, and it takes 699 at"):
        score_log(RankGSNR(), compared_log, tmp_path)
    assert score_log(GSNR(), compared_log, tmp_path).row_count == 700


def test_a_scorer_that_reads_more_than_the_log_is_refused():
    with pytest.raises(UserError, match="LossScorer reads BaseModelLosses, which a gradient log does not hold"):
        check_requests(LossScorer())


@pytest.mark.parametrize(
    ("ids", "message"),
    [([0, 1, 1, 3], "example 1 twice or out of order"), ([0, 2, 1, 3], "example 1 twice or out of order")],
)
def test_a_row_that_was_measured_twice_is_an_error(ids, message, tmp_path):
    norms = np.ones((2, 4))
    for epoch in (1, 2):
        write_epoch(tmp_path, EpochLog(np.asarray(ids), norms, norms, np.ones(4, np.int32)), range(2), epoch)
    with pytest.raises(UserError, match=message):
        list(ComparedLog(GradientLogReader(tmp_path), 1, 2, 0).pieces(2))


def test_members_of_different_rows_are_an_error(tmp_path):
    for member, ids in enumerate([[0, 1, 2], [0, 1, 3]]):
        log = EpochLog(np.asarray(ids), np.ones((1, 3)), np.ones((1, 3)), np.ones(3, np.int32))
        for epoch in (1, 2):
            write_epoch(tmp_path, log, [member], epoch)
    with pytest.raises(UserError, match=r"member=01/epoch=01/part-0.parquet logged other examples than"):
        list(ComparedLog(GradientLogReader(tmp_path), 1, 2, 0).pieces(2))


def test_snapshots_of_different_rows_are_an_error(tmp_path):
    for epoch, ids in ((1, [0, 1, 2]), (2, [0, 1])):
        norms = np.ones((1, len(ids)))
        write_epoch(tmp_path, EpochLog(np.asarray(ids), norms, norms, np.ones(len(ids), np.int32)), [0], epoch)
    with pytest.raises(UserError, match=r"the snapshots 1 and 2 of .* are of different rows"):
        list(ComparedLog(GradientLogReader(tmp_path), 1, 2, 0).pieces())
