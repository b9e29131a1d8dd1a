"""One line for each row of the dataset: what was measured, and whether it was chosen."""

from dataclasses import dataclass

import numpy as np

from gradfiltering.reports.page.folder import RunFolder
from gradfiltering.scorers.gradient_statistics import gradient_statistics

TINY = np.finfo(float).tiny
LENGTHS = {"response_tokens": "tokens", "response_characters": "characters"}


@dataclass(frozen=True)
class RowTable:
    """The N rows of the dataset, a row's place being its id.

    Attributes:
        score: [N] float64, NaN where a row has none.
        rank: [N] float64, 1 = best, NaN likewise.
        g_early: [N] G_s, NaN where no gradient was logged.
        g_late: [N] G_t likewise.
        variance_late: [N] V_t likewise.
        length: [N] of the response, NaN where it is not known.
        length_name: what `length` counts.
        kept: [N] bool, None where nothing was chosen.
        kinds: planted kind of each row, or None.
        sources: source of each row, or None.
    """

    score: np.ndarray
    rank: np.ndarray
    g_early: np.ndarray
    g_late: np.ndarray
    variance_late: np.ndarray
    length: np.ndarray
    length_name: str
    kept: np.ndarray | None
    kinds: list[str] | None
    sources: list[str | None] | None

    def __len__(self) -> int:
        return len(self.score)

    @property
    def relative_drop(self) -> np.ndarray:
        """[N] (G_s − G_t)/G_s."""
        return (self.g_early - self.g_late) / np.maximum(self.g_early, TINY)

    @property
    def best_share(self) -> np.ndarray:
        """[N] share of scored rows that a row's score beats or equals, in (0, 1]; NaN without a score."""
        scored = np.isfinite(self.rank)
        return 1 - (self.rank - 1) / max(int(scored.sum()), 1)


def row_table(run: RunFolder) -> RowTable:
    """Gathers what is known about each row."""
    total = run.total
    empty = np.full(total, np.nan)

    def placed(ids: np.ndarray, values: np.ndarray) -> np.ndarray:
        column = empty.copy()
        column[ids] = values
        return column

    score = rank = g_early = g_late = variance = empty
    if run.scores is not None:
        ids = run.scores["example_id"]
        score, rank = (placed(ids, run.scores[name]) for name in ("score", "rank"))
    length, length_name = empty, "response_tokens"
    if run.log is not None:
        early, late = run.log.epoch(run.epochs.early), run.log.epoch(run.epochs.late)
        ddof = run.config.get("scorer", {}).get("ddof", 0)
        stats = gradient_statistics(early.grad_norm, late.grad_norm, ddof)
        g_early, g_late, variance = (
            placed(late.example_ids, values) for values in (stats.early_norm, stats.late_norm, stats.late_variance)
        )
        length = placed(late.example_ids, late.response_tokens.astype(float))
    else:
        length_name = "response_characters"
        lengths = [len(text) for text in run.texts.table["response"].to_pylist()]
        length = placed(run.texts.example_ids, np.array(lengths, dtype=float))
    kept = None
    if run.chosen is not None:
        kept = np.zeros(total, bool)
        kept[run.chosen] = True
    sources = run.texts.column("source", np.arange(total))
    known = any(source is not None for source in sources)
    return RowTable(
        score, rank, g_early, g_late, variance, length, length_name, kept, run.kinds, sources if known else None
    )
