"""Selection among scored rows on disk: the best of all, or of each stratum, in bounded memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradfiltering.errors import UserError
from gradfiltering.scorers.base import Scores
from gradfiltering.selectors.base import Selection, Selector, Strata
from gradfiltering.shards.database import read_file, write_query
from gradfiltering.shards.scoring import ComparedLog, check_requests

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

SCORE_ROWS = "SELECT example_id, score FROM"


@dataclass(frozen=True)
class StoredSelection:
    """Selected rows on disk.

    Attributes:
        subset_file: `example_id`, ascending, and `score`.
        row_count: how many they are.
        facts: numbers about the selection by name.
        stopped: why fewer rows than asked for were selected, in words; None where the selector says nothing of it.
    """

    subset_file: Path
    row_count: int
    facts: dict[str, Any]
    stopped: str | None = None


def find_strata(selector: Selector) -> Strata | None:
    """Return the strata of a selector that takes the best rows of each; None for one that needs all rows at once."""
    quota_strata = getattr(selector, "quota_strata", None)
    return None if quota_strata is None else quota_strata()


def select_stored_rows(
    selector: Selector,
    connection: "DuckDBPyConnection",
    scored_file: Path,
    total_rows: int,
    subset_file: Path,
    rows_file: Path | None = None,
) -> StoredSelection:
    """Select the best scored rows of each stratum, as the selector itself would among rows in memory.

    Args:
        selector: one that has strata, see `find_strata`.
        connection: of a database.
        scored_file: `example_id`, `score`, and `response_tokens` where strata are lengths.
        total_rows: all rows of the dataset, which budgets count.
        subset_file: where the selected rows are written.
        rows_file: `example_id` and `source` of the rows, where strata are sources.

    Raises:
        UserError: rows name no source.
    """
    strata = find_strata(selector)
    assert strata is not None, "the selector needs all rows at once"
    scored_rows = _rows_with_column(selector, strata, connection, scored_file, rows_file)
    row_count = min(selector.budget_rows(total_rows), pq.read_metadata(scored_file).num_rows)
    if strata.column is None:
        best_rows = f"{SCORE_ROWS} {scored_rows} ORDER BY score DESC, example_id LIMIT {row_count}"
        write_query(connection, f"SELECT * FROM ({best_rows}) ORDER BY example_id", subset_file)
        return StoredSelection(subset_file, row_count, {})
    counts = connection.execute(
        f"SELECT stratum_value, count(*) AS row_count FROM {scored_rows} GROUP BY stratum_value ORDER BY stratum_value"
    ).fetchnumpy()
    values, row_counts = np.asarray(counts["stratum_value"]), np.asarray(counts["row_count"])
    value_strata = strata.group_values(values, row_counts)
    names, stratum_numbers = np.unique(value_strata, return_inverse=True)
    sizes = np.bincount(stratum_numbers, weights=row_counts, minlength=len(names)).astype(np.int64)
    quotas = strata.share_budget(row_count, sizes)
    strata_table = {"stratum_value": values, "stratum": stratum_numbers, "quota": quotas[stratum_numbers]}
    connection.register("strata", pa.table(strata_table))
    placed_rows = (
        "SELECT example_id, score, quota, row_number() OVER (PARTITION BY stratum ORDER BY score DESC, example_id) AS "
        f"place FROM {scored_rows} JOIN strata USING (stratum_value)"
    )
    write_query(
        connection,
        f"{SCORE_ROWS} ({placed_rows}) WHERE place <= quota ORDER BY example_id",
        subset_file,
    )
    stratum_facts = {
        str(name): {"rows": int(size), "selected": int(quota)}
        for name, size, quota in zip(names, sizes, quotas, strict=True)
    }
    return StoredSelection(subset_file, row_count, {"strata": stratum_facts})


def select_in_memory(selector: Selector, compared_log: ComparedLog, scored_file: Path, total_rows: int) -> Selection:
    """Select by a selector that needs all rows at once.

    Args:
        selector: reads the gradient log and scores alone.
        compared_log: the log.
        scored_file: `example_id` and `score` of its rows.
        total_rows: all rows of the dataset, which budgets count.

    Raises:
        UserError: the rows are too many, or the selector reads what is not there.
    """
    check_requests(selector)
    evidence = compared_log.read(selector)
    scored_rows = pq.read_table(scored_file, columns=["example_id", "score"])
    scores = Scores(scored_rows["example_id"].to_numpy(), scored_rows["score"].to_numpy())
    return selector.select(evidence, total_rows, scores)


def _rows_with_column(
    selector: Selector, strata: Strata, connection: "DuckDBPyConnection", scored_file: Path, rows_file: Path | None
) -> str:
    """Return the expression of SQL for the scored rows, with the column that groups them as `stratum_value`."""
    scored_rows = read_file(scored_file)
    if strata.column is None:
        return scored_rows
    if strata.column == "response_tokens":
        return f"(SELECT example_id, score, response_tokens AS stratum_value FROM {scored_rows})"
    if rows_file is None or not has_sources(connection, rows_file):
        raise UserError(
            "the rows have no column 'source'; stratify by length or cluster", owner=selector, arguments=("by",)
        )
    return (
        f"(SELECT example_id, score, coalesce(source, '') AS stratum_value FROM {scored_rows} "
        f"JOIN {read_file(rows_file)} USING (example_id))"
    )


def has_sources(connection: "DuckDBPyConnection", rows_file: Path) -> bool:
    """Return True where some row of `rows.parquet` names its source."""
    count_row = connection.execute(f"SELECT count(source) FROM {read_file(rows_file)}").fetchone()
    return count_row is not None and count_row[0] > 0


def count_sources(
    connection: "DuckDBPyConnection", rows_file: Path, subset_file: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count the rows of each source.

    Args:
        connection: of a database.
        rows_file: `example_id` and `source` of all rows.
        subset_file: `example_id` of the selected rows.

    Returns:
        [S] names, [S] rows and [S] selected rows of each.
    """
    counts = connection.execute(
        "SELECT coalesce(source, '') AS source_name, count(*) AS pool_rows, count(selected_rows.example_id) AS "
        f"subset_rows FROM {read_file(rows_file)} AS all_rows LEFT JOIN {read_file(subset_file)} AS selected_rows "
        "USING (example_id) GROUP BY source_name ORDER BY source_name"
    ).fetchnumpy()
    names, pool_counts, subset_counts = (
        np.asarray(counts[column_name]) for column_name in ("source_name", "pool_rows", "subset_rows")
    )
    return names, pool_counts, subset_counts
