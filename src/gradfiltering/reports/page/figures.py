"""Charts as PNG and SVG files for papers, by Matplotlib: no browser, no network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from gradfiltering.reports.page.charts import Chart, Series
from gradfiltering.runs.cache import atomic_path

FIGURES = "figures"  # of the run folder, or of a sweep's
# After Okabe and Ito (2008), darkened until each has a contrast of 3 to white; page.css has the same for both themes.
PALETTE = ("#0072b2", "#c65300", "#00805c", "#a8417f", "#7d6600", "#4d5358")
MARKERS = ("o", "s", "^", "D", "v", "P")
SHADES = "cividis"
MUTED = "#57606a"
FEW_DECADES = 1000
WIDTH_INCHES = 6.4
PIXELS_PER_INCH = 100
STYLE: Any = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e6ea",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "gradfiltering",  # the same run gives the same bytes
    "savefig.dpi": 200,
}


def write_figures(charts: Sequence[Chart], folder: Path) -> list[Path]:
    """Writes `<name>.png` and `<name>.svg` of each chart.

    Returns:
        The files.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    files = []
    with mpl.rc_context(cast(Any, STYLE)):
        for chart in charts:
            figure = Figure(figsize=(WIDTH_INCHES, chart.height / PIXELS_PER_INCH), layout="constrained")
            FigureCanvasAgg(figure)
            draw(chart, figure)
            for kind, about in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
                path = folder / f"{chart.name}.{kind}"
                with atomic_path(path) as part:
                    figure.savefig(part, format=kind, metadata=about)
                files.append(path)
    return files


def draw(chart: Chart, figure: Any) -> None:
    """Draws a chart into a Matplotlib figure."""
    axes = figure.add_subplot()
    for number, series in enumerate(chart.series):
        _draw_series(axes, series, number)
    if chart.diagonal:
        axes.axline((1, 1) if chart.x_log else (0, 0), (2, 2) if chart.x_log else (1, 1), color=MUTED, lw=1, ls=":")
    for mark in chart.marks:
        (axes.axvline if mark.axis == "x" else axes.axhline)(mark.at, color=MUTED, lw=1, ls="--")
        if mark.axis == "x":
            place = {"xy": (mark.at, 1.0), "xycoords": ("data", "axes fraction"), "va": "bottom", "ha": "center"}
        else:
            place = {"xy": (1.0, mark.at), "xycoords": ("axes fraction", "data"), "va": "bottom", "ha": "right"}
        axes.annotate(_escaped(mark.label), color=MUTED, fontsize=8, **place)
    axes.set(xlabel=_escaped(chart.x_title), ylabel=_escaped(chart.y_title))
    if chart.x_log:
        axes.set_xscale("log")
    if chart.y_log:
        axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        _label_decades(axis)
    if chart.x_ticks:
        axes.set_xticks([at for at, _ in chart.x_ticks], [_escaped(label) for _, label in chart.x_ticks])
    if chart.whole_x:
        axes.xaxis.get_major_locator().set_params(integer=True)
    named = [series for series in chart.series if series.name]
    if len(named) > 1:
        axes.legend(loc="best", fontsize=8)
    shaded = next((one for one in axes.collections if one.get_array() is not None), None)
    if chart.shade_title and shaded is not None:
        bar = figure.colorbar(shaded, ax=axes, label=_escaped(chart.shade_title), ticks=[0, 1])
        bar.ax.set_yticklabels([_escaped(end) for end in chart.shade_ends])


def _label_decades(axis: Any) -> None:
    """Labels 1, 2 and 5 of each decade on a logarithmic axis of few, where Matplotlib's own run into each other."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = axis.get_view_interval()
    if axis.get_scale() == "log" and high < FEW_DECADES * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())


def _draw_series(axes: Any, series: Series, number: int) -> None:
    colour = PALETTE[series.colour % len(PALETTE)]
    x, y = _clean(series.x), _clean(series.y)
    label = _escaped(series.name) or None
    low, high = (None if ends is None else np.asarray(_clean(ends), dtype=float) for ends in (series.low, series.high))
    if series.kind == "bars":
        width = 0.8 if series.width is None else np.asarray(series.width)
        axes.bar(x, y, width=width, color=colour, label=label, alpha=0.75 if number else 0.9, lw=0)
    elif series.kind == "line":
        many = len(x) > 60
        marker = None if many else MARKERS[series.colour % len(MARKERS)]
        axes.plot(x, y, color=colour, label=label, lw=1.6, ls="--" if series.dash else "-", marker=marker, ms=4)
        if low is not None and high is not None:
            axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
    elif low is not None and high is not None:
        middle = np.asarray(x if series.across else y, dtype=float)
        ends = np.abs(np.stack([middle - low, high - middle]))
        marker = MARKERS[series.colour % len(MARKERS)]
        options = {"xerr" if series.across else "yerr": ends, "color": colour, "label": label, "capsize": 3}
        axes.errorbar(x, y, fmt=marker, **options)
    else:
        # Thousands of points are a picture inside the SVG, not thousands of elements.
        options = {"s": 9 if len(x) > 300 else 22, "label": label, "lw": 0, "rasterized": len(x) > 1000}
        shade = {"c": colour} if series.shade is None else {"c": series.shade, "cmap": SHADES, "vmin": 0, "vmax": 1}
        axes.scatter(x, y, **options, **shade)


def _clean(values: Any) -> list[Any]:
    return [_escaped(value) if isinstance(value, str) else np.nan if value is None else value for value in values]


def _escaped(text: str) -> str:
    """Text in which Matplotlib finds no formula and XML no forbidden character."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text).replace("$", r"\$")
