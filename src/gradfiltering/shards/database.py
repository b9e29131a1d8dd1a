"""Parquet files of rows, asked by DuckDB, which sorts and groups in bounded memory and spills to disk."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradfiltering.runs.files import discard_quietly, explain_failed_writes
from gradfiltering.runs.gradient_log import PIECE_ROWS
from gradfiltering.statistics.rank_correlation import MIN_VALUES

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MEMORY_BYTES = 3 << 29  # that the database may take, beside the process itself: 1.5 GiB
PATTERN_SIGNS = re.compile(r"[*?\[]")


@contextmanager
def open_database(work_folder: Path, memory_bytes: int = MEMORY_BYTES) -> Iterator["DuckDBPyConnection"]:
    """Open a database without tables, which is gone when the block ends.

    Args:
        work_folder: for what does not fit into memory; the database makes and deletes a folder in it.
        memory_bytes: that sorting and grouping may take.
    """
    import duckdb

    spill_folder = work_folder / "database"
    options: dict[str, Any] = {
        "memory_limit": f"{memory_bytes >> 20}MiB",
        "temp_directory": str(spill_folder),
        "preserve_insertion_order": False,
        "autoinstall_known_extensions": False,  # nothing touches the network
    }
    connection = duckdb.connect(config=options)
    try:
        with explain_failed_writes(spill_folder):
            yield connection
    finally:
        connection.close()
        discard_quietly(spill_folder)


def quote_text(text: str) -> str:
    """Write a text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def quote_name(column_name: str) -> str:
    """Write the name of a column in SQL."""
    return '"' + column_name.replace('"', '""') + '"'


def read_file(parquet_file: Path) -> str:
    """Return the expression of SQL that stands for the rows of a parquet file."""
    return read_files([parquet_file])


def read_files(parquet_files: Sequence[Path]) -> str:
    """Return the expression of SQL that stands for the rows of parquet files, whatever their folders are called.

    DuckDB takes a path for a pattern, so that `run[1]` would be `run1`, and a folder `source=web` for a column that
    replaces the file's own.
    """
    literal_paths = [PATTERN_SIGNS.sub(r"[\g<0>]", str(parquet_file.absolute())) for parquet_file in parquet_files]
    return f"(FROM read_parquet([{', '.join(map(quote_text, literal_paths))}], hive_partitioning = false))"


def write_query(connection: "DuckDBPyConnection", query: str, parquet_file: Path) -> None:
    """Write the rows of a query, in its order, as a parquet file."""
    connection.execute(
        f"COPY ({query}) TO {quote_text(str(parquet_file))} (FORMAT parquet, ROW_GROUP_SIZE {PIECE_ROWS})"
    )


@dataclass(frozen=True)
class StoredColumns:
    """Columns of a query's rows, see `gradfiltering.diagnostics.row_columns.RowColumns`.

    Attributes:
        connection: of the database.
        rows: the expression of SQL that stands for the rows.
    """

    connection: "DuckDBPyConnection"
    rows: str

    @property
    def names(self) -> Sequence[str]:
        """Names of the columns."""
        return [str(column[0]) for column in self.connection.execute(f"DESCRIBE SELECT * FROM {self.rows}").fetchall()]

    @property
    def row_count(self) -> int:
        """N."""
        return int(self._ask("count(*)"))

    def mean(self, column_name: str) -> float:
        """Compute the mean of a column; NaN without rows."""
        return self._number(f"favg({quote_name(column_name)})")

    def median(self, column_name: str) -> float:
        """Compute the median of a column by sorting it, since sorting spills to disk and counting values does not."""
        row_count, column = self.row_count, quote_name(column_name)
        middle = f"LIMIT {2 - row_count % 2} OFFSET {(row_count - 1) // 2}"
        middle_rows = f"SELECT {column} FROM {self.rows} ORDER BY {column} {middle}"
        return float(self._row(f"SELECT avg({column}) FROM ({middle_rows})")[0])

    def share_above_zero(self, column_name: str) -> float:
        """Compute the share of rows whose value is greater than 0."""
        return self._number(f"avg(CAST({quote_name(column_name)} > 0 AS DOUBLE))")

    def share_below_zero(self, column_name: str) -> float:
        """Compute the share of rows whose value is less than 0."""
        return self._number(f"avg(CAST({quote_name(column_name)} < 0 AS DOUBLE))")

    def is_finite(self, column_name: str) -> bool:
        """Return True where no value is NaN or infinite."""
        return bool(self._ask(f"coalesce(bool_and(isfinite({quote_name(column_name)})), true)"))

    def is_constant(self, column_name: str) -> bool:
        """Return True where all values are equal."""
        column = quote_name(column_name)
        return bool(self._ask(f"min({column}) = max({column})"))

    def correlate_ranks(self, column_pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        """Compute Spearman's correlation of each pair of columns; each column is ranked once, equal values alike."""
        column_names = sorted({name for pair in column_pairs for name in pair})
        varying = {name for name in column_names if self.is_finite(name) and not self.is_constant(name)}
        if self.row_count < MIN_VALUES or not varying:
            return [None] * len(column_pairs)
        rank_names = {name: f"rank_{index}" for index, name in enumerate(column_names) if name in varying}
        # Rows before a value and rows up to it, its equals among them: their middle is the mean rank of the equals.
        ranks = ", ".join(
            f"rank() OVER {rank_name} + count(*) OVER {rank_name} AS {rank_name}" for rank_name in rank_names.values()
        )
        windows = ", ".join(f"{rank} AS (ORDER BY {quote_name(name)})" for name, rank in rank_names.items())
        correlations = {
            pair: f"corr({rank_names[pair[0]]}, {rank_names[pair[1]]})" for pair in column_pairs if varying >= set(pair)
        }
        if not correlations:
            return [None] * len(column_pairs)
        query = f"SELECT {', '.join(correlations.values())} FROM (SELECT {ranks} FROM {self.rows} WINDOW {windows})"
        values = dict(zip(correlations, map(float, self._row(query)), strict=True))
        return [values.get(pair) for pair in column_pairs]

    def _ask(self, expression: str) -> Any:
        return self._row(f"SELECT {expression} FROM {self.rows}")[0]

    def _number(self, expression: str) -> float:
        value = self._ask(expression)
        return float("nan") if value is None else float(value)

    def _row(self, query: str) -> tuple[Any, ...]:
        result_row = self.connection.execute(query).fetchone()
        assert result_row is not None, "an aggregate has one row"
        return tuple(result_row)
