"""Charts: the drawn values are the measured ones, in the page and in the files."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest

from gradfiltering.reports.page.charts import (
    ChartLabels,
    ReferenceLine,
    interval_chart,
    line_chart,
    round_number,
    scatter_chart,
    write_figures,
)

LINES = line_chart(
    ChartLabels("lines", "Why?", "Because.", "x", "y $ <b>"),
    pd.DataFrame(
        {
            "series": ["a <b> $x$", "a <b> $x$", "a <b> $x$", "b"],
            "x": [1.0, 2.0, 3.0, 1.0],
            "y": [1.23456, np.nan, 3.0, 1.0],
            "low": [0.0, 0.0, 2.0, 1.0],
            "high": [2.0, 3.0, 4.0, 1.0],
        }
    ),
    dashed_series=["b"],
    reference_lines=[ReferenceLine("y", 2.0, "limit")],
)
INTERVALS = interval_chart(
    ChartLabels("intervals", "Who?", "", "x", ""),
    pd.DataFrame({"series": ["a"], "x": [1.0], "y": ["who & why"], "low": [0.5], "high": [2.0]}),
)


def test_numbers_are_rounded_to_four_digits():
    assert [round_number(value) for value in (1.23456, float("nan"), float("inf"))] == [1.235, None, None]


def test_a_specification_is_json_with_the_rounded_values():
    specification = LINES.specification()
    assert json.dumps(specification, allow_nan=False) and "config" not in specification
    rows = max(specification["datasets"].values(), key=len)
    assert [row["y"] for row in rows] == [1.235, None, 3.0, 1.0]


def test_a_specification_is_the_same_each_time():
    assert LINES.specification() == LINES.specification()


def test_the_numbers_behind_a_chart_have_readable_titles():
    assert list(LINES.numbers) == ["series", "x", "y $ <b>", "low", "high"]


def test_figures_are_png_and_svg_with_text_as_text(tmp_path):
    for name in "ab":
        write_figures([LINES, INTERVALS], tmp_path / name)
    first, second = (sorted((tmp_path / name).iterdir(), key=lambda path: path.name) for name in "ab")
    assert [path.name for path in first] == ["intervals.png", "intervals.svg", "lines.png", "lines.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert first[0].read_bytes().startswith(b"\x89PNG")
    words = "".join(ET.parse(first[3]).getroot().itertext())
    assert "y $ <b>" in words and "a <b> $x$" in words and "limit" in words
    assert "who & why" in "".join(ET.parse(first[1]).getroot().itertext())


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_scatter_charts_have_a_diagonal_over_all_points(scale):
    data = pd.DataFrame({"x": [1.0, 3.0 * scale], "y": [0.5, 2.0], "shade": [0.0, 1.0]})
    chart = scatter_chart(ChartLabels("s", "?", "", "x", "y"), data, diagonal=True, x_log=True, y_log=True)
    ends = min(chart.specification()["datasets"].values(), key=lambda rows: rows[-1]["y"] != 3.0 * scale)
    assert ends == [{"x": 0.5, "y": 0.5}, {"x": 3.0 * scale, "y": 3.0 * scale}]
