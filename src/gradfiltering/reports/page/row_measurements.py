"""One line for each row of the dataset that is read: its measurements, and whether it was selected."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from gradfiltering.reports.run_files import RunFiles
from gradfiltering.scorers.gradient_statistics import GradientScorer

TINY = np.finfo(float).tiny


@dataclass(frozen=True)
class RowMeasurements:
    """N rows of the dataset: all of them, or those that a page of very many is made of.

    Attributes:
        table: [N] rows by example id, which is the index, NaN where nothing was measured: `score`, `rank` (1 = best),
            `g_early` (G_s), `g_late` (G_t), `relative_drop` ((G_s − G_t)/G_s), `variance_late` (V_t) and `length` of
            the response.
        length_unit: of `length`: `tokens` or `characters`.
        selected: [N] bool, None where nothing was selected.
        kinds: planted kind of each row, or None.
        sources: source of each row, or None.
        scored_count: rows of the whole dataset that have a score.
        is_drawn: [N] bool, False for rows that are there to be shown, and not by chance.
    """

    table: pd.DataFrame
    length_unit: str
    selected: np.ndarray | None
    kinds: list[str] | None
    sources: list[str] | None
    scored_count: int
    is_drawn: np.ndarray

    def __len__(self) -> int:
        return len(self.table)

    @property
    def row_ids(self) -> np.ndarray:
        """[N] ids of the rows, ascending."""
        return self.table.index.to_numpy()

    def find_positions(self, example_ids: np.ndarray) -> np.ndarray:
        """Find the positions of rows that are among these, [n] ids -> [n] int64."""
        return np.searchsorted(self.row_ids, example_ids)

    @property
    def drawn(self) -> "RowMeasurements":
        """The rows that are there by chance, by which shares of the dataset are estimated."""
        if self.is_drawn.all():
            return self
        positions = np.flatnonzero(self.is_drawn)
        return replace(
            self,
            table=self.table.iloc[positions],
            selected=None if self.selected is None else self.selected[positions],
            kinds=None if self.kinds is None else [self.kinds[position] for position in positions],
            sources=None if self.sources is None else [self.sources[position] for position in positions],
            is_drawn=self.is_drawn[positions],
        )

    def values(self, column: str) -> np.ndarray:
        """[N] float64 values of a column of the table."""
        return self.table[column].to_numpy(dtype=float)

    @property
    def score_share(self) -> np.ndarray:
        """[N] share of scored rows that a row's score beats or equals, in (0, 1]; NaN without a score."""
        return 1 - (self.values("rank") - 1) / max(self.scored_count, 1)


def measure_rows(run_files: RunFiles) -> RowMeasurements:
    """Gather the measurements of each row that is read."""
    row_ids = pd.Index(run_files.row_ids)
    measured_columns: dict[str, pd.Series] = {}
    if run_files.scores is not None:
        scores = run_files.scores.set_index("example_id")
        measured_columns |= {"score": scores["score"], "rank": scores["rank"]}
    length_unit = "tokens"
    if run_files.gradient_log is not None:
        early_norms, late_norms = run_files.compared_norms  # [M, N]
        late_log = run_files.gradient_log.epoch(run_files.epochs.late)
        logged = pd.DataFrame({"g_early": early_norms.mean(0), "g_late": late_norms.mean(0)}, late_log.example_ids)
        logged["length"] = late_log.response_tokens
        logged["relative_drop"] = (logged["g_early"] - logged["g_late"]) / logged["g_early"].clip(lower=TINY)
        if len(late_norms) > 1:
            ddof = run_files.options("scorer").get("ddof", GradientScorer.ddof)
            logged["variance_late"] = late_norms.var(axis=0, ddof=ddof)
        measured_columns |= {str(name): column for name, column in logged.items()}
    elif run_files.row_texts is not None:
        length_unit = "characters"
        measured_columns["length"] = run_files.row_texts["response"].str.len()
    column_names = ("score", "rank", "g_early", "g_late", "relative_drop", "variance_late", "length")
    no_values = pd.Series(np.nan, row_ids)
    table = pd.DataFrame(
        {name: measured_columns.get(name, no_values).reindex(row_ids).astype(float) for name in column_names}
    )
    selected = None if run_files.selected_ids is None else np.isin(row_ids, run_files.selected_ids)
    sources = None
    if run_files.row_texts is not None and run_files.row_texts["source"].notna().any():
        sources = run_files.row_texts["source"].reindex(row_ids).fillna("").tolist()
    return RowMeasurements(
        table=table,
        length_unit=length_unit,
        selected=selected,
        kinds=run_files.planted_kinds,
        sources=sources,
        scored_count=run_files.scored_count,
        is_drawn=run_files.is_drawn(run_files.row_ids),
    )
