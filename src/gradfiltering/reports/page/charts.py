"""Charts by Altair: one specification gives the chart in the page and its PNG and SVG files."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import altair as alt
import pandas as pd
import vl_convert

from gradfiltering.runs.files import atomic_path, delete_symbolic_link

FIGURE_WIDTH = 620  # pixels
PIXELS_PER_POINT = 2
ROWS_LISTED = 200
SIGNIFICANT_DIGITS = 4
FEW_POINTS = 60  # a line of more has no visible points
# After Okabe and Ito (2008), darkened until each has a contrast of 3 to white. Colours are written for the light theme;
# base.css has the colours of both themes under the names in COLOUR_VARIABLES, and base.js swaps them.
PALETTE = ("#0072b2", "#c65300", "#00805c", "#a8417f", "#7d6600", "#4d5358")
GREY = 5
TEXT_COLOUR, MUTED_COLOUR, GRID_COLOUR = "#1a1f26", "#545d68", "#e3e6ea"
COLOUR_VARIABLES = {
    **{series_colour: f"--c{index}" for index, series_colour in enumerate(PALETTE)},
    TEXT_COLOUR: "--text",
    MUTED_COLOUR: "--muted",
    GRID_COLOUR: "--grid",
}
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
STYLE: dict[str, Any] = {
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "domainColor": MUTED_COLOUR,
        "gridColor": GRID_COLOUR,
        "labelColor": TEXT_COLOUR,
        "labelFontSize": 12,
        "labelOverlap": "greedy",
        "labelSeparation": 8,
        "tickColor": MUTED_COLOUR,
        "titleColor": TEXT_COLOUR,
        "titleFontSize": 13,
        "titleFontWeight": "normal",
        "titlePadding": 8,
    },
    "axisXQuantitative": {"tickCount": 8},
    "legend": {
        "columns": 3,
        "labelColor": TEXT_COLOUR,
        "labelFontSize": 12,
        "labelLimit": 260,
        "offset": 20,
        "orient": "top",
        "symbolOpacity": 1,
        "titleColor": TEXT_COLOUR,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
    },
    "rule": {"color": MUTED_COLOUR},
    "text": {"color": MUTED_COLOUR, "fontSize": 12},
}


@dataclass(frozen=True)
class ChartLabels:
    """Words of a chart.

    Attributes:
        name: of the figure files and of the chart's place in the page; letters, digits and `_`.
        question: that the chart answers, in plain words.
        reading: explains the marks and says what they show.
        x_title: of the axis, with the unit.
        y_title: likewise.
    """

    name: str
    question: str
    reading: str
    x_title: str
    y_title: str


@dataclass(frozen=True)
class Chart(ChartLabels):
    """A chart.

    Attributes:
        data: the drawn values: `x` and `y`, and `series`, `low` and `high` where there are any.
        drawing: the same in Altair.
        height: in pixels.
    """

    data: pd.DataFrame
    drawing: Any
    height: int = 340

    def specification(self) -> dict[str, Any]:
        """Build the Vega-Lite specification, ready for JSON."""
        drawing = self.drawing.properties(
            width=FIGURE_WIDTH, height=self.height, autosize={"type": "fit", "contains": "padding"}
        )
        specification: dict[str, Any] = drawing.to_dict()
        del specification["config"]  # Altair's own defaults; STYLE takes their place
        return specification

    @property
    def numbers(self) -> pd.DataFrame:
        """The first values behind the chart under readable column names."""
        columns = [name for name in ("series", "x", "y", "low", "high") if name in self.data]
        titles = {"x": self.x_title, "y": self.y_title}
        return self.data[columns].head(ROWS_LISTED).rename(columns=titles)


@dataclass(frozen=True)
class ReferenceLine:
    """A dashed line across the chart at one value.

    Attributes:
        axis: on which the value lies.
        value: in the axis's unit.
        label: stands beside the line.
    """

    axis: Literal["x", "y"]
    value: float
    label: str


def line_chart(
    chart_labels: ChartLabels,
    data: pd.DataFrame,
    *,
    palette_indices: Mapping[str, int] | None = None,
    dashed_series: Iterable[str] = (),
    reference_lines: Sequence[ReferenceLine] = (),
    x_log: bool = False,
    y_log: bool = False,
    whole_x: bool = False,
    height: int = 340,
) -> Chart:
    """Draw lines with points, and a band around each line where `data` has `low` and `high`.

    Args:
        chart_labels: words of the chart.
        data: columns `series`, `x` and `y`; optionally `low`, `high`, `order` (along a line) and `hover`.
        palette_indices: colours of series, in order of appearance where not given.
        dashed_series: names of the series drawn as broken lines.
        reference_lines: drawn across the chart.
        x_log, y_log: whether the axis is logarithmic.
        whole_x: whether x has whole numbers only.
        height: in pixels.
    """
    data = _round_columns(data)
    x_axis = alt.Axis(format="d", tickMinStep=1) if whole_x else alt.Axis()
    x = alt.X("x:Q", title=chart_labels.x_title, scale=_scale(x_log), axis=x_axis)
    y = alt.Y("y:Q", title=chart_labels.y_title, scale=_scale(y_log))
    colour, shape = _series_encodings(data, palette_indices or {})
    base_chart = alt.Chart(data.assign(dashed=data["series"].isin([*dashed_series])))
    dashes = alt.StrokeDash("dashed:N", scale=alt.Scale(domain=[False, True], range=[[1, 0], [6, 4]]), legend=None)
    line_marks = base_chart.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour, strokeDash=dashes)
    if "order" in data:
        line_marks = line_marks.encode(order="order:Q")
    chart_layers = [line_marks]
    if "low" in data:
        low_end = alt.Y("low:Q", title=chart_labels.y_title)
        chart_layers.insert(0, base_chart.mark_area(opacity=0.18).encode(x=x, color=colour, y=low_end, y2="high:Q"))
    many_points = bool((data.groupby("series").size() > FEW_POINTS).any())
    point_marks = base_chart.mark_point(filled=True, size=45, opacity=0 if many_points else 1)
    tooltip = _tooltip(chart_labels, data)
    chart_layers.append(point_marks.encode(x=x, y=y, color=colour, shape=shape, tooltip=tooltip))
    return _combine_layers(chart_labels, data, chart_layers, reference_lines, height)


def scatter_chart(
    chart_labels: ChartLabels,
    data: pd.DataFrame,
    *,
    shade_title: str = "",
    x_log: bool = False,
    y_log: bool = False,
    diagonal: bool = False,
    height: int = 340,
) -> Chart:
    """Draw a point for each row.

    Args:
        chart_labels, x_log, y_log, height: as for `line_chart`.
        data: columns `x` and `y`; optionally `hover`, and `shade` in [0, 1], from the worst to the best.
        shade_title: title of the shades' legend.
        diagonal: whether to draw the line on which x equals y.
    """
    data = _round_columns(data)
    x = alt.X("x:Q", title=chart_labels.x_title, scale=_scale(x_log))
    y = alt.Y("y:Q", title=chart_labels.y_title, scale=_scale(y_log))
    colour: Any = alt.value(PALETTE[0])
    if "shade" in data:
        shade_words = "datum.value < 0.5 ? 'worst' : 'best'"
        shade_legend = alt.Legend(title=shade_title, values=[0, 1], labelExpr=shade_words, gradientLength=160)
        # Cividis reads alike with and without colour vision; its ends, which fade on either theme, are left out.
        shade_scale = alt.Scale(domain=[0, 1], scheme=alt.SchemeParams(name="cividis", extent=[0.25, 0.95]))
        colour = alt.Color("shade:Q", scale=shade_scale, legend=shade_legend)
    point_marks = alt.Chart(data).mark_point(filled=True, size=14 if len(data) > 300 else 40, opacity=0.8)
    chart_layers = [point_marks.encode(x=x, y=y, color=colour, tooltip=_tooltip(chart_labels, data))]
    if diagonal:
        ends = [data[["x", "y"]].min().min(), data[["x", "y"]].max().max()]
        diagonal_line = alt.Chart(pd.DataFrame({"x": ends, "y": ends}))
        diagonal_line = diagonal_line.mark_line(strokeDash=[2, 3], strokeWidth=1.5, color=MUTED_COLOUR)
        chart_layers.append(diagonal_line.encode(x=x, y=y))
    return _combine_layers(chart_labels, data, chart_layers, height=height)


def interval_chart(
    chart_labels: ChartLabels,
    data: pd.DataFrame,
    *,
    palette_indices: Mapping[str, int] | None = None,
    reference_lines: Sequence[ReferenceLine] = (),
) -> Chart:
    """Draw points beside names, with whiskers along x where `low` and `high` are known.

    Args:
        chart_labels, palette_indices, reference_lines: as for `line_chart`.
        data: columns `series`, `x`, `y` (names, drawn from the top) and, optionally, `low` and `high`.
    """
    data = _round_columns(data)
    x = alt.X("x:Q", title=chart_labels.x_title, scale=_scale(False))
    y = alt.Y("y:N", title=chart_labels.y_title, sort=None, axis=alt.Axis(labelLimit=220))
    colour, shape = _series_encodings(data, palette_indices or {})
    base_chart, chart_layers = alt.Chart(data), []
    if "low" in data:
        low_end = alt.X("low:Q", title=chart_labels.x_title)
        chart_layers.append(base_chart.mark_rule(strokeWidth=2).encode(y=y, color=colour, x=low_end, x2="high:Q"))
    point_marks = base_chart.mark_point(filled=True, size=80, opacity=1)
    tooltip = _tooltip(chart_labels, data)
    chart_layers.append(point_marks.encode(x=x, y=y, color=colour, shape=shape, tooltip=tooltip))
    return _combine_layers(chart_labels, data, chart_layers, reference_lines, 110 + 34 * data["y"].nunique())


def bar_chart(chart_labels: ChartLabels, data: pd.DataFrame, *, reference_lines: Sequence[ReferenceLine] = ()) -> Chart:
    """Draw a bar for each name in column `x` of the height in column `y`."""
    data = _round_columns(data)
    x = alt.X("x:N", title=chart_labels.x_title, sort=None, axis=alt.Axis(labelAngle=-40))
    y = alt.Y("y:Q", title=chart_labels.y_title)
    bar_marks = alt.Chart(data).mark_bar(color=PALETTE[0], opacity=0.85)
    bar_marks = bar_marks.encode(x=x, y=y, tooltip=_tooltip(chart_labels, data))
    return _combine_layers(chart_labels, data, [bar_marks], reference_lines)


def histogram_chart(
    chart_labels: ChartLabels,
    data: pd.DataFrame,
    *,
    x_scale: alt.Scale,
    palette_indices: Mapping[str, int],
    tick_values: Sequence[float] = (),
    reference_lines: Sequence[ReferenceLine] = (),
) -> Chart:
    """Draw histograms over each other.

    Args:
        chart_labels, palette_indices, reference_lines: as for `line_chart`.
        data: columns `series`, `x` and `x_end` (edges of a bar) and `y` (its height).
        x_scale: of the axis.
        tick_values: places of the ticks, chosen by Vega where not given.
    """
    data = _round_columns(data, digits=6).assign(zero=0)
    axis = alt.Axis(values=list(tick_values), labelExpr="datum.value") if tick_values else alt.Axis()
    bar_marks = alt.Chart(data).mark_rect(opacity=0.7)
    bar_marks = bar_marks.encode(
        x=alt.X("x:Q", title=chart_labels.x_title, scale=x_scale, axis=axis),
        x2="x_end:Q",
        y=alt.Y("y:Q", title=chart_labels.y_title),
        y2="zero:Q",
        color=_series_encodings(data, palette_indices)[0],
        tooltip=_tooltip(chart_labels, data),
    )
    return _combine_layers(chart_labels, data, [bar_marks], reference_lines)


def _scale(logarithmic: bool) -> alt.Scale:
    return alt.Scale(type="log") if logarithmic else alt.Scale(zero=False)


def _series_encodings(data: pd.DataFrame, palette_indices: Mapping[str, int]) -> tuple[alt.Color, alt.Shape]:
    """Build the colour and the shape of each series, with a legend where there are several."""
    series_names = list(dict.fromkeys(data["series"]))
    colour_indices = [palette_indices.get(name, position) % len(PALETTE) for position, name in enumerate(series_names)]
    legend = alt.Legend(title=None) if len(series_names) > 1 else None
    colour_scale = alt.Scale(domain=series_names, range=[PALETTE[index] for index in colour_indices])
    shape_scale = alt.Scale(domain=series_names, range=[SHAPES[index] for index in colour_indices])
    return (
        alt.Color("series:N", scale=colour_scale, legend=legend),
        alt.Shape("series:N", scale=shape_scale, legend=legend),
    )


def _combine_layers(
    chart_labels: ChartLabels,
    data: pd.DataFrame,
    chart_layers: Sequence[alt.Chart],
    reference_lines: Sequence[ReferenceLine] = (),
    height: int = 340,
) -> Chart:
    """Lay the layers of a chart over each other, reference lines on top."""
    all_layers = list(chart_layers)
    for line in reference_lines:
        base_chart = alt.Chart(pd.DataFrame({"value": [line.value], "label": [line.label]}))
        rule_marks = base_chart.mark_rule(strokeDash=[4, 4], strokeWidth=1.5)
        if line.axis == "x":
            x = alt.X("value:Q", title=chart_labels.x_title)
            label_marks = base_chart.mark_text(dy=-6, baseline="bottom")
            all_layers += [rule_marks.encode(x=x), label_marks.encode(x=x, y=alt.value(0), text="label:N")]
        else:
            y = alt.Y("value:Q", title=chart_labels.y_title)
            label_marks = base_chart.mark_text(dx=4, align="left")
            all_layers += [rule_marks.encode(y=y), label_marks.encode(y=y, x=alt.value("width"), text="label:N")]
    return Chart(**vars(chart_labels), data=data, drawing=alt.LayerChart(layer=all_layers), height=height)


def _tooltip(chart_labels: ChartLabels, data: pd.DataFrame) -> list[alt.Tooltip]:
    if "hover" in data:
        return [alt.Tooltip("hover:N", title="point")]
    titles = {"series": "series", "x": chart_labels.x_title, "y": chart_labels.y_title, "low": "low", "high": "high"}
    several = "series" in data and data["series"].nunique() > 1
    column_names = [name for name in titles if name in data and (name != "series" or several)]
    kinds = {name: "Q" if pd.api.types.is_numeric_dtype(data[name]) else "N" for name in column_names}
    return [alt.Tooltip(f"{name}:{kinds[name]}", title=titles[name]) for name in column_names]


def _round_columns(data: pd.DataFrame, digits: int = SIGNIFICANT_DIGITS) -> pd.DataFrame:
    """Round numbers to significant digits, which keeps the page small."""
    rounded_data = data.copy()
    for name in data.select_dtypes("float"):
        rounded_data[name] = [round_number(value, digits) for value in data[name].tolist()]
    return rounded_data


def round_number(value: float, digits: int = SIGNIFICANT_DIGITS) -> float | None:
    """Round to significant digits; a number that is not finite becomes None."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def write_figures(charts: Sequence[Chart], folder: Path) -> None:
    """Write `<name>.png` and `<name>.svg` of each chart."""
    delete_symbolic_link(folder)
    style = {**STYLE, "background": "white", "font": "sans-serif"}
    for chart in charts:
        specification = chart.specification()
        png = vl_convert.vegalite_to_png(specification, config=style, scale=PIXELS_PER_POINT)
        svg = vl_convert.vegalite_to_svg(specification, config=style).encode()
        for suffix, content in (("png", png), ("svg", svg)):
            with atomic_path(folder / f"{chart.name}.{suffix}") as part:
                part.write_bytes(content)
