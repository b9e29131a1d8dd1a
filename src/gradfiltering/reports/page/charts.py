"""What a chart shows, apart from how it is drawn: the page draws it with Plotly, the figure files with Matplotlib."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Values = Sequence[Any] | np.ndarray
DIGITS = 4
MAGNITUDES_APART = 30
MOST_TICKS = 10


@dataclass(frozen=True)
class Series:
    """Points, a line or bars.

    Attributes:
        name: in the legend.
        x: [K] numbers, or names of categories.
        y: [K] likewise.
        kind: how it is drawn.
        colour: place in the palette.
        low: [K] lower ends of intervals (whiskers of points, a band of a line), or None.
        high: [K] upper ends.
        across: the intervals lie along x.
        shade: [K] numbers in [0, 1] by which points are coloured, or None.
        hover: [K] what is said about each point, or None for its coordinates.
        dash: a broken line.
        width: [K] widths of bars in units of x, or None.
    """

    name: str
    x: Values
    y: Values
    kind: Literal["points", "line", "bars"] = "line"
    colour: int = 0
    low: Values | None = None
    high: Values | None = None
    across: bool = False
    shade: Values | None = None
    hover: Sequence[str] | None = None
    dash: bool = False
    width: Values | None = None


@dataclass(frozen=True)
class Mark:
    """A line across the chart at one value.

    Attributes:
        axis: on which the value lies.
        at: the value.
        label: what it stands for.
    """

    axis: Literal["x", "y"]
    at: float
    label: str


@dataclass(frozen=True)
class Chart:
    """One chart and the question it answers.

    Attributes:
        name: of the figure files and of the place in the page; letters, digits and `_`.
        question: in plain words.
        x_title: of the axis, with the unit.
        y_title: likewise.
        series: what is drawn, the last on top.
        reading: how to read it, and what it shows.
        marks: lines across it.
        x_log: logarithmic axis.
        y_log: likewise.
        shade_title: what colours of points stand for.
        shade_ends: words for the least and the greatest of them.
        height: in pixels.
        diagonal: a line where x equals y.
        whole_x: the x axis has whole numbers only.
        x_ticks: places on the x axis and what stands there, where these are not the numbers themselves.
    """

    name: str
    question: str
    x_title: str
    y_title: str
    series: Sequence[Series]
    reading: str = ""
    marks: Sequence[Mark] = ()
    x_log: bool = False
    y_log: bool = False
    shade_title: str = ""
    shade_ends: tuple[str, str] = ("low", "high")
    height: int = 360
    diagonal: bool = False
    whole_x: bool = False
    x_ticks: Sequence[tuple[float, str]] = ()

    def plain(self) -> dict[str, Any]:
        """What the page's script draws from, ready for JSON."""
        return {
            "question": self.question,
            "x_title": self.x_title,
            "y_title": self.y_title,
            "marks": [{"axis": mark.axis, "at": mark.at, "label": mark.label} for mark in self.marks],
            "x_log": self.x_log,
            "y_log": self.y_log,
            "shade_title": self.shade_title,
            "shade_ends": list(self.shade_ends),
            "height": self.height,
            "diagonal": self.diagonal,
            "whole_x": self.whole_x,
            "x_ticks": [list(tick) for tick in self.x_ticks],
            "series": [_plain(series) for series in self.series],
        }


def _plain(series: Series) -> dict[str, Any]:
    arrays = {name: getattr(series, name) for name in ("x", "y", "low", "high", "shade", "width")}
    rest = {name: getattr(series, name) for name in ("name", "kind", "colour", "across", "dash")}
    hover = None if series.hover is None else list(series.hover)
    return {**{name: None if v is None else short_numbers(v) for name, v in arrays.items()}, **rest, "hover": hover}


def short_numbers(values: Iterable[Any], digits: int = DIGITS) -> list[Any]:
    """Numbers to a few significant digits, None for those that are not finite; anything else as it is."""
    if isinstance(values, np.ndarray):
        values = values.tolist()
    return [short(value, digits) for value in values]


def short(value: Any, digits: int = DIGITS) -> Any:
    """One of `short_numbers`."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def histogram(values: np.ndarray, bins: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Edges and the bin of each value that is finite.

    The range ends at the first and the last percentile where a tail would else squeeze the rest into few bins; what
    lies beyond is counted in the outermost bins.

    Returns:
        [bins + 1] edges and [K] bins of the finite values.
    """
    finite = values[np.isfinite(values)]
    low, high = float(finite.min()), float(finite.max())
    near = np.quantile(finite, [0.01, 0.99])
    if high - low > 4 * (near[1] - near[0]) > 0:
        low, high = float(near[0]), float(near[1])
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, bins + 1)
    return edges, np.clip(np.searchsorted(edges, finite, side="right") - 1, 0, bins - 1)


@dataclass(frozen=True)
class Stretch:
    """A scale on which values of many magnitudes can be told apart: logarithmic, linear around 0 where signs differ.

    Attributes:
        unit: below it the scale is linear; 0 for a plain scale.
    """

    unit: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Stretch":
        """A plain scale unless the values' magnitudes lie far apart."""
        sizes = np.abs(values[np.isfinite(values) & (values != 0)])
        if not len(sizes):
            return cls(0.0)
        low, middle, high = np.quantile(sizes, [0.02, 0.5, 0.99])
        return cls(float(low)) if high > MAGNITUDES_APART * middle or middle > MAGNITUDES_APART * low else cls(0.0)

    def __call__(self, values: Any) -> np.ndarray:
        """The values on this scale."""
        values = np.asarray(values, dtype=float)
        return np.arcsinh(values / self.unit) if self.unit else values

    def ticks(self, low: float, high: float) -> list[tuple[float, str]]:
        """Powers of ten between two values, none for a plain scale."""
        if not self.unit:
            return []
        first = math.ceil(math.log10(self.unit))
        largest = max(abs(low), abs(high), 10 * self.unit)
        powers = list(range(first, math.floor(math.log10(largest)) + 1))
        powers = powers[:: max(1, len(powers) // 4)]
        at = [-(10.0**p) for p in reversed(powers)] + [0.0] + [10.0**p for p in powers]
        apart, kept = abs(float(self(high)) - float(self(low))) / MOST_TICKS, [0.0]
        for value in sorted((one for one in at if low <= one <= high), key=abs):
            if min(abs(float(self(value)) - float(self(other))) for other in kept) >= apart:
                kept.append(value)
        return [(float(self(value)), f"{value:g}") for value in sorted(kept) if low <= value <= high]
