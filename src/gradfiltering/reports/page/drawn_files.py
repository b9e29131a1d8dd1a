"""A run folder of more rows than a page can be made of: the page reads a bounded draw of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from gradfiltering.reports.run_files import RunFiles
from gradfiltering.runs.gradient_log import GradientLogReader
from gradfiltering.runs.run_folder import (
    GRADIENT_LOG,
    HYGIENE_FILE,
    ROWS_FILE,
    SCORES_FILE,
    SUBSET_FILE,
    TRUTH_FILE,
    UNSCORED_FILE,
)
from gradfiltering.seeding import numpy_rng
from gradfiltering.shards.database import open_database, read_file

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MOST_ROWS_READ = 200_000  # for the charts of a page


class DrawnRunFiles(RunFiles):
    """The files of a run, of which rows drawn at random are read, and those that the table of rows must show.

    These are the best, the worst and those at the cut. Numbers that the summary holds are those of all rows.

    Args:
        path: the run folder.
        shown_rows: rows that the page holds with their text.

    Attributes:
        is_whole: False, as most rows are not read.
    """

    is_whole = False

    def __init__(self, path: Path, shown_rows: int):
        super().__init__(path)
        self.shown_rows = shown_rows

    @cached_property
    def drawn_ids(self) -> np.ndarray:
        """[D] ids of the rows drawn at random, ascending."""
        rng = numpy_rng(self.seed, "rows read")
        return np.sort(rng.choice(self.row_count, max(MOST_ROWS_READ, self.shown_rows), replace=False))

    @cached_property
    def row_ids(self) -> np.ndarray:
        """[K] ids of the rows that are read, ascending."""
        scores_file = self.path / SCORES_FILE
        if not scores_file.is_file():
            return self.drawn_ids
        selected = self.selection.get("selected", 0)
        margin = self.shown_rows // 4  # as many as `sample_rows` takes of each
        with self._database() as connection:
            shown_ids = connection.execute(
                f"SELECT example_id FROM {read_file(scores_file)}, (SELECT max(rank) AS last_rank FROM "
                f"{read_file(scores_file)}) WHERE rank <= {margin} OR rank > last_rank - {margin} "
                f"OR abs(rank - {selected}) <= {margin}"
            ).fetchnumpy()["example_id"]
        return np.union1d(self.drawn_ids, np.asarray(shown_ids))

    def is_drawn(self, example_ids: np.ndarray) -> np.ndarray:
        """Mark the rows that were drawn at random, [n] ids -> [n] bool; shares of all rows are estimated by these."""
        return np.isin(example_ids, self.drawn_ids)

    @cached_property
    def scored_count(self) -> int:
        """Rows with a score, read or not."""
        return self._count_rows(SCORES_FILE)

    @cached_property
    def last_selected_rank(self) -> float:
        """The last rank among all selected rows; NaN where none has a rank."""
        if not (self.path / SCORES_FILE).is_file() or not (self.path / SUBSET_FILE).is_file():
            return float("nan")
        with self._database() as connection:
            result_row = connection.execute(
                f"SELECT max(rank) FROM {read_file(self.path / SCORES_FILE)} "
                f"SEMI JOIN {read_file(self.path / SUBSET_FILE)} USING (example_id)"
            ).fetchone()
        return float("nan") if result_row is None or result_row[0] is None else float(result_row[0])

    @cached_property
    def scores(self) -> pd.DataFrame | None:
        """`example_id`, `score`, `rank` and the parts of the score of the rows that are read, by example id."""
        return self._read(SCORES_FILE)

    @cached_property
    def selected_ids(self) -> np.ndarray | None:
        """Ids of the selected rows among those that are read, ascending."""
        subset = self._read(SUBSET_FILE)
        return None if subset is None else subset["example_id"].to_numpy()

    @cached_property
    def unscored_reasons(self) -> dict[int, str]:
        """Reason for which a row that is read has no score, by example id."""
        unscored = self._read(UNSCORED_FILE)
        return {} if unscored is None else dict(zip(unscored["example_id"], unscored["reason"], strict=True))

    @cached_property
    def planted_kinds(self) -> list[str] | None:
        """The planted kind of each row that is read, where known."""
        truth = self._read(TRUTH_FILE)
        return None if truth is None else truth["kind"].tolist()

    @cached_property
    def gradient_log(self) -> GradientLogReader | None:
        """The gradient log of the rows that are read."""
        has_log = self.folder.read_gradient_log() is not None
        return GradientLogReader(self.path / GRADIENT_LOG, self.row_ids) if has_log else None

    def _read_hygiene(self) -> pd.DataFrame | None:
        return self._read(HYGIENE_FILE)

    def _read_texts(self) -> pd.DataFrame | None:
        return self._read(ROWS_FILE)

    def _count_rows(self, file_name: str) -> int:
        return int(pq.read_metadata(self.path / file_name).num_rows) if (self.path / file_name).is_file() else 0

    def _read(self, file_name: str) -> pd.DataFrame | None:
        """Read the rows of a table that are among `row_ids`, by example id."""
        if not (self.path / file_name).is_file():
            return None
        row_ids = self.row_ids  # asks a database of its own, so before another is opened
        with self._database() as connection:
            connection.register("read_ids", pa.table({"example_id": row_ids}))
            table: pa.Table = connection.sql(
                f"FROM {read_file(self.path / file_name)} SEMI JOIN read_ids USING (example_id) ORDER BY example_id"
            ).to_arrow_table()
        rows: pd.DataFrame = table.to_pandas()
        return rows

    @contextmanager
    def _database(self) -> Iterator["DuckDBPyConnection"]:
        with (
            TemporaryDirectory(prefix="gradfiltering-page-") as work_folder,
            open_database(Path(work_folder)) as tables,
        ):
            yield tables


def open_run_files(run_dir: Path, row_limit: int | str) -> RunFiles:
    """Open a run for its page; of more rows than a page is made of a part is read, unless all are to be shown."""
    run_files = RunFiles(run_dir)
    if isinstance(row_limit, str) or run_files.row_count <= max(MOST_ROWS_READ, row_limit):
        return run_files
    return DrawnRunFiles(run_dir, row_limit)
