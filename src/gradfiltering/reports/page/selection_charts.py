"""Charts of the selected rows and of the numbers behind the selection."""

from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from gradfiltering.reports.page.charts import (
    GREY,
    Chart,
    ChartLabels,
    ReferenceLine,
    bar_chart,
    histogram_chart,
    interval_chart,
    line_chart,
    scatter_chart,
)
from gradfiltering.reports.page.row_measurements import RowMeasurements
from gradfiltering.reports.page.value_scales import SymmetricLog, assign_bins
from gradfiltering.seeding import numpy_rng

POINTS_DRAWN = 2500
BIN_COUNT = 40
LENGTH_GROUPS = 10
CATEGORIES_DRAWN = 20
GROUP_COLOURS = {"rows": 0, "selected rows": 0, "dropped rows": GREY, "all rows": GREY}


def draw_selection(measured_rows: RowMeasurements, diagnostics: Mapping[str, Any], seed: int) -> list[Chart]:
    """Draw the charts for which the run has the numbers."""
    drawn_charts = [
        draw_scores(measured_rows),
        draw_norms(measured_rows, seed),
        draw_variance(measured_rows),
        draw_drop_by_length(measured_rows),
        draw_selection_by_length(measured_rows),
    ]
    if diagnostics.get("truth"):
        question = "Did planted defects get in?"
        drawn_charts.append(_draw_shares("kinds", question, "planted kind", diagnostics["truth"]["share"]))
    if len(diagnostics.get("sources", {}).get("share", {})) > 1:
        question = "Does the subset still cover every source?"
        drawn_charts.append(_draw_shares("sources", question, "source", diagnostics["sources"]["share"]))
    return [chart for chart in drawn_charts if chart is not None]


def draw_norms(measured_rows: RowMeasurements, seed: int) -> Chart | None:
    """Draw the gradient norms at the late epoch against those at the early one."""
    measured = measured_rows.table[["g_early", "g_late"]].dropna()
    if measured.empty:
        return None
    drawn_rows = measured
    if len(measured) > POINTS_DRAWN:
        drawn_rows = measured.sample(POINTS_DRAWN, random_state=numpy_rng(seed, "points shown"))
    chart_data = pd.DataFrame({"x": drawn_rows["g_early"], "y": drawn_rows["g_late"]})
    chart_data["hover"] = [_describe_row(measured_rows, int(row_id)) for row_id in drawn_rows.index]
    if measured_rows.table["rank"].notna().any():
        row_positions = measured_rows.find_positions(drawn_rows.index.to_numpy())
        chart_data["shade"] = np.nan_to_num(measured_rows.score_share[row_positions])
        chart_data = chart_data.sort_values("shade")  # the best on top
    fallen = float((measured["g_late"] < measured["g_early"]).mean())
    some_drawn = len(drawn_rows) < len(measured)
    sample = f" Drawn: {len(drawn_rows):,} of {len(measured):,} rows, at random." if some_drawn else ""
    chart_labels = ChartLabels(
        name="norms",
        question="Did training calm a row's gradient, and which rows score best?",
        reading=f"Below the dotted line the norm fell: it did for {fallen:.0%} of the rows.{sample}",
        x_title="G_s: mean gradient norm at the early epoch",
        y_title="G_t: at the late epoch",
    )
    return scatter_chart(
        chart_labels, chart_data, shade_title="score", x_log=True, y_log=True, diagonal=True, height=430
    )


def draw_variance(measured_rows: RowMeasurements) -> Chart | None:
    """Draw the distribution of V_t among selected and dropped rows."""
    late_variance = measured_rows.values("variance_late")
    is_positive = np.isfinite(late_variance) & (late_variance > 0)
    if not is_positive.any():
        return None
    chart_data, outlier_words = _bin_groups(
        np.log10(np.where(is_positive, late_variance, 1.0)), is_positive, measured_rows.selected
    )
    chart_data[["x", "x_end"]] = 10 ** chart_data[["x", "x_end"]]
    reading = "To the left the members agree." + outlier_words
    if measured_rows.selected is not None:
        selected_variance = late_variance[measured_rows.selected & is_positive]
        dropped_variance = late_variance[~measured_rows.selected & is_positive]
        if len(selected_variance) and len(dropped_variance):
            ratio = np.median(selected_variance) / np.median(dropped_variance)
            reading += f" The median of the selected rows is {ratio:.2g} times that of the dropped ones."
    chart_labels = ChartLabels(
        name="variance",
        question="On which rows do the members agree?",
        reading=reading,
        x_title="V_t: variance over members, late epoch",
        y_title="share of rows, %",
    )
    exponent_ends = np.log10([chart_data["x"].min(), chart_data["x_end"].max()])
    exponents = range(int(np.floor(exponent_ends[0])), int(np.ceil(exponent_ends[1])) + 1)
    return histogram_chart(
        chart_labels,
        chart_data,
        x_scale=alt.Scale(type="log", nice=False),
        palette_indices=GROUP_COLOURS,
        tick_values=[10.0**exponent for exponent in exponents],
    )


def draw_scores(measured_rows: RowMeasurements) -> Chart | None:
    """Draw the distribution of the scores and, where there is one, the cut."""
    scores = measured_rows.values("score")
    is_scored = np.isfinite(scores)
    if not is_scored.any():
        return None
    score_scale = SymmetricLog.fit(scores)
    chart_data, reading = _bin_groups(
        score_scale.apply(np.where(is_scored, scores, 0.0)), is_scored, measured_rows.selected
    )
    for edge in ("x", "x_end"):
        chart_data[edge] = score_scale.invert(chart_data[edge].to_numpy())
    low, high = float(chart_data["x"].min()), float(chart_data["x_end"].max())
    reference_lines = []
    if measured_rows.selected is not None:
        selected_scores = scores[measured_rows.selected & is_scored]
        dropped_scores = scores[~measured_rows.selected & is_scored]
        if len(selected_scores) and len(dropped_scores):
            lowest_selected = float(selected_scores.min())
            if lowest_selected >= dropped_scores.max():
                reference_lines = [ReferenceLine("x", float(np.clip(lowest_selected, low, high)), "the cut")]
                reading += f" Every row from {lowest_selected:.4g} up was selected."
            else:
                reading += " The selector looked at more than the score, so there is no single cut."
    tick_values = score_scale.tick_values(low, high)
    if tick_values:
        reading += " The scale is logarithmic away from 0."
    chart_labels = ChartLabels(
        name="score",
        question="How are the scores spread, and where is the cut?",
        reading=reading.strip(),
        x_title="score",
        y_title="share of rows, %",
    )
    return histogram_chart(
        chart_labels,
        chart_data,
        x_scale=score_scale.altair_scale,
        palette_indices=GROUP_COLOURS,
        tick_values=tick_values,
        reference_lines=reference_lines,
    )


def draw_drop_by_length(measured_rows: RowMeasurements) -> Chart | None:
    """Draw the quartiles of the relative drop in groups of rows of like length."""
    measured = measured_rows.table[["relative_drop", "length"]].dropna()
    groups = measured.groupby(group_by_length(measured["length"]))
    if groups.ngroups < 2:
        return None
    quartiles = groups["relative_drop"].quantile(np.array([0.25, 0.5, 0.75])).unstack()
    chart_data = pd.DataFrame({"x": groups["length"].median(), "y": quartiles[0.5]})
    chart_data = chart_data.assign(series="rows", low=quartiles[0.25], high=quartiles[0.75])
    chart_labels = ChartLabels(
        name="drop_by_length",
        question="Does the drop merely follow length?",
        reading="Median and middle half of groups of rows of like length. A flat line: length hardly matters.",
        x_title=f"length of the response, {measured_rows.length_unit}",
        y_title="relative drop (G_s − G_t)/G_s",
    )
    return line_chart(chart_labels, chart_data, reference_lines=[ReferenceLine("y", 0.0, "no drop")])


def draw_selection_by_length(measured_rows: RowMeasurements) -> Chart | None:
    """Draw the share of selected rows in groups of rows of like length."""
    if measured_rows.selected is None or measured_rows.selected.all():
        return None
    measured = pd.DataFrame({"length": measured_rows.table["length"], "selected": measured_rows.selected}).dropna()
    groups = measured.groupby(group_by_length(measured["length"]))
    if groups.ngroups < 2:
        return None
    length_ranges = groups["length"].agg(lambda lengths: f"{int(lengths.min())}–{int(lengths.max())}")
    chart_data = pd.DataFrame({"x": length_ranges, "y": 100 * groups["selected"].mean()})
    chart_labels = ChartLabels(
        name="kept_by_length",
        question="Are short or long answers preferred?",
        reading="Bars of equal height mean that length did not decide.",
        x_title=f"length of the response, {measured_rows.length_unit}",
        y_title="selected, % of the rows of that length",
    )
    all_rows = ReferenceLine("y", 100 * float(measured_rows.selected.mean()), "all rows")
    return bar_chart(chart_labels, chart_data, reference_lines=[all_rows])


def group_by_length(row_lengths: pd.Series) -> pd.Series:
    """Number up to ten groups of rows of like length; rows of equal length are in the same group."""
    if row_lengths.empty:
        return row_lengths
    edges = np.unique(np.quantile(row_lengths, np.linspace(0, 1, LENGTH_GROUPS + 1)))
    group_numbers = np.searchsorted(edges, row_lengths, side="right") - 1
    return pd.Series(np.clip(group_numbers, 0, max(len(edges) - 2, 0)), row_lengths.index)


def _bin_groups(values: np.ndarray, measured: np.ndarray, is_selected: np.ndarray | None) -> tuple[pd.DataFrame, str]:
    """Count selected and dropped rows in the same bins, in percent of each group.

    Returns:
        Data of a histogram, and a sentence on the rows beyond its ends.
    """
    values = values[measured]
    bin_edges, bin_indices = assign_bins(values, BIN_COUNT)
    row_groups = {"rows": np.ones(len(values), bool)}
    if is_selected is not None:
        row_groups = {"dropped rows": ~is_selected[measured], "selected rows": is_selected[measured]}
    group_frames = []
    for name, is_inside in row_groups.items():
        if is_inside.any():
            shares = 100 * np.bincount(bin_indices[is_inside], minlength=BIN_COUNT) / is_inside.sum()
            bars = {"series": name, "x": bin_edges[:-1], "x_end": bin_edges[1:], "y": shares}
            group_frames.append(pd.DataFrame(bars))
    outlier_count = int(((values < bin_edges[0]) | (values > bin_edges[-1])).sum())
    outlier_words = f" {outlier_count:,} rows beyond the ends are in the outermost bars." if outlier_count else ""
    return pd.concat(group_frames), outlier_words


def _draw_shares(name: str, question: str, category_name: str, shares: Mapping[str, Mapping[str, float]]) -> Chart:
    """Draw the share of each category in the pool and among the selected rows."""
    table = pd.DataFrame(shares).T.mul(100)
    table = table.sort_values("pool", ascending=False, kind="stable").head(CATEGORIES_DRAWN)
    pool_points = pd.DataFrame({"series": "all rows", "x": table["pool"], "y": table.index})
    selected_points = pd.DataFrame({"series": "selected rows", "x": table["selected"], "y": table.index})
    with_intervals = "low" in table and bool(table["low"].notna().all())
    if with_intervals:
        selected_points = selected_points.assign(low=table["low"], high=table["high"])
    chart_labels = ChartLabels(
        name=name,
        question=question,
        reading=f"Where the two marks lie apart, the selection prefers or avoids that {category_name}."
        + (" Whiskers are bootstrap intervals." if with_intervals else ""),
        x_title="share, %",
        y_title=category_name,
    )
    return interval_chart(chart_labels, pd.concat([pool_points, selected_points]), palette_indices=GROUP_COLOURS)


def _describe_row(measured_rows: RowMeasurements, row_id: int) -> str:
    row = measured_rows.table.loc[row_id]
    score = "" if np.isnan(row["score"]) else f", score {row['score']:.4g}, rank {row['rank']:.0f}"
    state = ""
    if measured_rows.selected is not None:
        position = int(measured_rows.find_positions(np.array([row_id]))[0])
        state = ", selected" if measured_rows.selected[position] else ", dropped"
    return f"row {row_id}{score}{state}, relative drop {row['relative_drop']:+.3f}"
