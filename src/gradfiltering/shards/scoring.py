"""Scores of a gradient log, computed piece by piece, and their ranks."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradfiltering.diagnostics.ensemble import ensemble_columns
from gradfiltering.diagnostics.subset import score_columns
from gradfiltering.errors import UserError
from gradfiltering.requests import EpochLog, Evidence, GradientLog, GradientLogPair
from gradfiltering.runs.gradient_log import PIECE_ROWS, GradientLogReader
from gradfiltering.runs.progress import progress_bar
from gradfiltering.scorers.base import Scorer, Scores
from gradfiltering.shards.database import quote_name, read_file, write_query

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MOST_ROWS_AT_ONCE = 2_000_000  # that a scorer or selector which needs all of them gets


@dataclass(frozen=True)
class ComparedLog:
    """A gradient log on disk and the two snapshots of it that are compared.

    Attributes:
        log: the reader of its files.
        early: number of the early snapshot.
        late: number of the late snapshot.
        seed: of the run that it is scored for.
    """

    log: GradientLogReader
    early: int
    late: int
    seed: int

    @property
    def row_count(self) -> int:
        """Rows of the log."""
        return self.log.count_rows(self.late)

    def pieces(self, piece_rows: int = PIECE_ROWS) -> Iterator[Evidence]:
        """Read the log as evidence of some rows after the other.

        Raises:
            UserError: the snapshots or the members are of different rows.
        """
        early_pieces, late_pieces = (self.log.pieces(epoch, piece_rows) for epoch in (self.early, self.late))
        if self.log.count_rows(self.early) != self.log.count_rows(self.late):
            raise self._differs()
        for early_piece, late_piece in zip(early_pieces, late_pieces, strict=True):
            yield self._evidence(early_piece, late_piece)

    def read(self, reader: object) -> Evidence:
        """Read all of the log, for a scorer or selector that needs all rows at once.

        Args:
            reader: that scorer or selector, to name in the error.

        Raises:
            UserError: the log has too many rows for that.
        """
        self.check_fits_memory(reader)
        return self._evidence(self.log.epoch(self.early), self.log.epoch(self.late))

    def check_fits_memory(self, reader: object) -> None:
        """Refuse a log of too many rows for a scorer or selector that needs all of them at once.

        Raises:
            UserError: says how many rows it takes, and what to do.
        """
        if self.row_count > MOST_ROWS_AT_ONCE:
            raise UserError(
                f"{type(reader).__name__} compares rows with each other, so that all {self.row_count:,} must be in "
                f"memory, and it takes {MOST_ROWS_AT_ONCE:,} at most; choose a scorer that scores each row by itself "
                "(gsnr, raw_drop, grad_norm, learnability, …) and the selector top or stratified, or score a part of "
                "the rows"
            )

    def _evidence(self, early: EpochLog, late: EpochLog) -> Evidence:
        if not np.array_equal(early.example_ids, late.example_ids):
            raise self._differs()
        return Evidence(
            example_ids=late.example_ids,
            seed=self.seed,
            response_tokens=late.response_tokens,
            token_counts=np.full(len(late.example_ids), np.nan),  # the log does not tell; whoever reads them finds out
            results={GradientLog(): GradientLogPair(early, late)},
        )

    def _differs(self) -> UserError:
        return UserError(
            f"the snapshots {self.early} and {self.late} of {self.log.log_folder} are of different rows; choose two "
            "that were logged of the same"
        )


@dataclass(frozen=True)
class ScoredLog:
    """Files of numbers about the rows of a log, in ascending order of ids.

    Attributes:
        scored_file: `example_id`, `response_tokens` and the columns of `score_columns`.
        ensemble_file: the columns of `ensemble_columns`.
        statistic_names: of the statistics that the scorer left beside the score.
        unscored: id and reason of each row of the log that got no score.
        row_count: rows with a score.
    """

    scored_file: Path
    ensemble_file: Path
    statistic_names: tuple[str, ...]
    unscored: list[tuple[int, str]]
    row_count: int


def check_requests(reader: Any) -> None:
    """Refuse a scorer or selector that reads more than a gradient log.

    Raises:
        UserError: names what it reads.
    """
    other_requests = sorted(type(request).__name__ for request in reader.requests - {GradientLog()})
    if other_requests:
        raise UserError(
            f"{type(reader).__name__} reads {', '.join(other_requests)}, which a gradient log does not hold; choose "
            "one that reads gradients alone, or start a run, which measures what is missing"
        )


def score_log(scorer: Scorer, compared_log: ComparedLog, work_folder: Path, piece_rows: int = PIECE_ROWS) -> ScoredLog:
    """Score a log, piece by piece where the scorer is row-wise, and write what diagnostics need of each row.

    Args:
        scorer: reads the gradient log alone.
        compared_log: the log.
        work_folder: for the files.
        piece_rows: rows that are scored at once.

    Raises:
        UserError: the scorer needs all rows at once, and they are too many.
    """
    check_requests(scorer)
    scored_file, ensemble_file = work_folder / "scored_rows.parquet", work_folder / "ensemble_rows.parquet"
    statistic_names: tuple[str, ...] = ()
    unscored: list[tuple[int, str]] = []
    row_count = 0
    if scorer.row_wise:
        scored_pieces = ((piece, scorer.score(piece)) for piece in compared_log.pieces(piece_rows))
    else:
        evidence = compared_log.read(scorer)
        scored_pieces = (pair for pair in [(evidence, scorer.score(evidence))])
    with (
        _ColumnWriter(scored_file) as scored_writer,
        _ColumnWriter(ensemble_file) as ensemble_writer,
        progress_bar("scoring", compared_log.row_count) as bar,
    ):
        for piece, scores in scored_pieces:
            statistic_names = tuple(scores.columns)
            unscored += scores.unscored
            row_count += len(scores.score)
            ensemble_writer.write(ensemble_columns(piece.get(GradientLog())))
            scored_writer.write(_scored_columns(piece, scores))
            bar.advance(len(piece.example_ids))
    return ScoredLog(scored_file, ensemble_file, statistic_names, unscored, row_count)


def write_ranked_scores(connection: "DuckDBPyConnection", scored_log: ScoredLog, scores_file: Path) -> None:
    """Write `example_id`, `score`, `rank` (1 = best, ties by example id) and the scorer's statistics, by example id."""
    statistics = "".join(f", {quote_name(name)}" for name in scored_log.statistic_names)
    ranked_rows = (
        f"SELECT example_id, score, row_number() OVER (ORDER BY score DESC, example_id) AS rank{statistics} "
        f"FROM {read_file(scored_log.scored_file)}"
    )
    write_query(connection, f"SELECT * FROM ({ranked_rows}) ORDER BY example_id", scores_file)


def _scored_columns(piece: Evidence, scores: Scores) -> dict[str, np.ndarray]:
    row_positions = np.searchsorted(piece.example_ids, scores.example_ids)
    return {
        "example_id": scores.example_ids,
        "response_tokens": piece.response_tokens[row_positions],
        **score_columns(scores),
    }


class _ColumnWriter:
    """Writes columns into a parquet file, one row group a piece."""

    def __init__(self, parquet_file: Path):
        self.parquet_file = parquet_file
        self.writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "_ColumnWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.writer is not None:
            self.writer.close()

    def write(self, columns: Mapping[str, np.ndarray]) -> None:
        table = pa.table(dict(columns))
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.parquet_file, table.schema, use_dictionary=False)
        self.writer.write_table(table, row_group_size=max(1, len(table)))
