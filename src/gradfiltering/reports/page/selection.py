"""Charts of what was chosen and why."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gradfiltering.reports.page.charts import Chart, Mark, Series, Stretch, histogram
from gradfiltering.reports.page.table import TINY, RowTable
from gradfiltering.seeding import numpy_rng

POINTS_SHOWN = 3000
BINS = 40
LENGTH_GROUPS = 10


def selection_charts(rows: RowTable, diagnostics: Mapping[str, Any], seed: int) -> list[Chart]:
    """Those that the run has the numbers for."""
    found = [_score(rows), _norms(rows, seed), _variance(rows), _drop_by_length(rows), _kept_by_length(rows)]
    if diagnostics.get("truth"):
        found.append(_shares("kinds", "Did planted defects get in?", "planted kind", diagnostics["truth"]["share"]))
    if len(diagnostics.get("sources", {}).get("share", {})) > 1:
        question = "Does the subset still cover every source?"
        found.append(_shares("sources", question, "source", diagnostics["sources"]["share"]))
    return [chart for chart in found if chart is not None]


def _norms(rows: RowTable, seed: int) -> Chart | None:
    ids = np.flatnonzero(np.isfinite(rows.g_early) & np.isfinite(rows.g_late))
    if not len(ids):
        return None
    shown = _some(ids, seed)
    scored = bool(np.isfinite(rows.rank[shown]).any())
    if scored:
        shown = shown[np.argsort(np.nan_to_num(rows.best_share[shown]))]  # the best on top
    hover = [_about(rows, int(row)) for row in shown]
    shade = np.nan_to_num(rows.best_share[shown]) if scored else None
    series = Series("", rows.g_early[shown], rows.g_late[shown], "points", shade=shade, hover=hover)
    fell = float((rows.g_late[ids] < rows.g_early[ids]).mean())
    sample = "" if len(shown) == len(ids) else f" Shown are {len(shown):,} of {len(ids):,} rows, drawn at random."
    return Chart(
        name="norms",
        question="Did training calm a row's gradient, and which rows score best?",
        x_title="G_s: mean gradient norm at the early epoch",
        y_title="G_t: at the late epoch",
        series=[series],
        reading=f"Below the dotted line the norm fell: it did for {fell:.0%} of the rows.{sample}",
        x_log=True,
        y_log=True,
        shade_title="score" if scored else "",
        shade_ends=("worst", "best"),
        height=430,
        diagonal=True,
    )


def _variance(rows: RowTable) -> Chart | None:
    known = np.isfinite(rows.variance_late) & (rows.variance_late > 0)
    if not known.any():
        return None
    values = np.where(known, np.log10(np.where(known, rows.variance_late, 1.0)), np.nan)
    series, reading = _pool_and_chosen(values, rows.kept)
    if rows.kept is not None and (rows.kept & known).any() and (~rows.kept & known).any():
        ratio = np.median(rows.variance_late[rows.kept & known]) / np.median(rows.variance_late[~rows.kept & known])
        reading += f" The median of the chosen rows is {ratio:.2g} times that of the dropped ones."
    powers = range(int(np.floor(np.nanmin(values))), int(np.ceil(np.nanmax(values))) + 1)
    return Chart(
        name="variance",
        question="On which rows do the members agree?",
        x_title="V_t: variance over members, late epoch",
        y_title="share of rows, %",
        series=series,
        reading="To the left the members agree." + reading,
        x_ticks=[(float(power), f"1e{power}") for power in powers],
    )


def _score(rows: RowTable) -> Chart | None:
    known = np.isfinite(rows.score)
    if not known.any():
        return None
    stretch = Stretch.of(rows.score)
    values = stretch(rows.score)
    series, reading = _pool_and_chosen(values, rows.kept)
    marks = []
    if rows.kept is not None and (rows.kept & known).any() and not rows.kept[known].all():
        lowest = float(rows.score[rows.kept & known].min())
        highest_dropped = float(rows.score[~rows.kept & known].max())
        if lowest >= highest_dropped:
            edges, _ = histogram(values, BINS)
            marks = [Mark("x", float(np.clip(stretch(lowest), edges[0], edges[-1])), "the cut")]
            reading += f" Every row from {lowest:.4g} up was chosen."
        else:
            reading += " The selector looked at more than the score, so there is no single cut."
    ticks = stretch.ticks(float(rows.score[known].min()), float(rows.score[known].max()))
    scale = " The scale is logarithmic away from 0." if ticks else ""
    return Chart(
        name="score",
        question="How are the scores spread, and where is the cut?",
        x_title="score",
        y_title="share of rows, %",
        series=series,
        reading=reading.strip() + scale,
        marks=marks,
        x_ticks=ticks,
    )


def _pool_and_chosen(values: np.ndarray, kept: np.ndarray | None) -> tuple[list[Series], str]:
    """Two histograms over the same bins, in percent of each group, and what to say about them."""
    edges, bins = histogram(values, BINS)
    middle, width = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
    chosen = None if kept is None else kept[np.isfinite(values)]
    groups = [("dropped rows", 5, ~chosen), ("chosen rows", 0, chosen)] if chosen is not None else [("rows", 0, None)]
    series = []
    for name, colour, inside in groups:
        counts = np.bincount(bins if inside is None else bins[inside], minlength=BINS)
        if counts.sum():
            share = 100 * counts / counts.sum()
            series.append(Series(name, middle, share, "bars", colour=colour, width=width))
    beyond = (values[np.isfinite(values)] < edges[0]) | (values[np.isfinite(values)] > edges[-1])
    return series, f" {int(beyond.sum()):,} rows beyond the ends are in the outermost bars." if beyond.any() else ""


def _drop_by_length(rows: RowTable) -> Chart | None:
    drop = rows.relative_drop
    known = np.isfinite(drop) & np.isfinite(rows.length)
    groups = length_groups(rows.length, known)
    if len(groups) < 2:
        return None
    quartiles = np.array([np.quantile(drop[group], [0.25, 0.5, 0.75]) for group in groups])
    middle = np.array([np.median(rows.length[group]) for group in groups])
    line = Series("", middle, quartiles[:, 1], low=quartiles[:, 0], high=quartiles[:, 2])
    return Chart(
        name="drop_by_length",
        question="Does the drop merely follow length?",
        x_title=_length_title(rows),
        y_title="relative drop (G_s − G_t)/G_s",
        series=[line],
        reading="Median and middle half of groups of rows of like length. A flat line: length hardly matters.",
        marks=[Mark("y", 0.0, "no drop")],
    )


def _kept_by_length(rows: RowTable) -> Chart | None:
    if rows.kept is None or rows.kept.all():
        return None
    groups = length_groups(rows.length, np.isfinite(rows.length))
    if len(groups) < 2:
        return None
    share = [100 * float(rows.kept[group].mean()) for group in groups]
    names = [f"{int(rows.length[group].min())}–{int(rows.length[group].max())}" for group in groups]
    return Chart(
        name="kept_by_length",
        question="Are short or long answers preferred?",
        x_title=_length_title(rows),
        y_title="chosen, % of the rows of that length",
        series=[Series("", names, share, "bars")],
        reading="Bars of one height mean that length did not decide.",
        marks=[Mark("y", 100 * float(rows.kept.mean()), "all rows")],
    )


def length_groups(length: np.ndarray, known: np.ndarray) -> list[np.ndarray]:
    """Ids of rows in up to ten groups of like length; rows of one length stay together."""
    ids = np.flatnonzero(known)
    if not len(ids):
        return []
    edges = np.unique(np.quantile(length[ids], np.linspace(0, 1, LENGTH_GROUPS + 1)))
    group = np.clip(np.searchsorted(edges, length[ids], side="right") - 1, 0, max(len(edges) - 2, 0))
    return [ids[group == one] for one in np.unique(group)]


def _shares(name: str, question: str, what: str, share: Mapping[str, Mapping[str, float]]) -> Chart:
    """Shares in the pool and among the chosen, with intervals where they are known."""
    order = sorted(share, key=lambda one: -share[one]["pool"])[:20]
    intervals = all("low" in share[one] for one in order)
    ends: dict[str, Any] = {}
    if intervals:
        ends = {end: [100 * share[one][end] for one in order] for end in ("low", "high")}
    pool = Series("all rows", [100 * share[one]["pool"] for one in order], order, "points", colour=5)
    chosen = Series(
        "chosen rows", [100 * share[one]["selected"] for one in order], order, "points", across=True, **ends
    )
    whiskers = " Whiskers are bootstrap intervals." if intervals else ""
    return Chart(
        name=name,
        question=question,
        x_title="share, %",
        y_title=what,
        series=[pool, chosen],
        reading=f"Where the two marks lie apart, the choice prefers or avoids that {what}.{whiskers}",
        height=max(240, 110 + 34 * len(order)),
    )


def _length_title(rows: RowTable) -> str:
    return "length of the response, " + ("tokens" if rows.length_name == "response_tokens" else "characters")


def _some(ids: np.ndarray, seed: int) -> np.ndarray:
    if len(ids) <= POINTS_SHOWN:
        return ids
    return np.sort(numpy_rng(seed, "points shown").choice(ids, POINTS_SHOWN, replace=False))


def _about(rows: RowTable, row: int) -> str:
    score = "" if np.isnan(rows.score[row]) else f", score {rows.score[row]:.4g}, rank {rows.rank[row]:.0f}"
    state = "" if rows.kept is None else ", chosen" if rows.kept[row] else ", dropped"
    drop = (rows.g_early[row] - rows.g_late[row]) / max(rows.g_early[row], TINY)
    return f"row {row}{score}{state}, relative drop {drop:+.3f}"
