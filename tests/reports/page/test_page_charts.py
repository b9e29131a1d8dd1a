"""Charts as data: what is drawn is what was measured."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from gradfiltering.reports.page.charts import Chart, Mark, Series, Stretch, histogram, short_numbers
from gradfiltering.reports.page.figures import write_figures

CHART = Chart(
    "one", "Why?", "x", "y $ <b>", [
        Series("a <b> $x$ \x00", np.arange(1, 4.0), np.array([1.0, np.nan, 3.0]), low=[0, 0, 2.0], high=[2.0, 3, 4]),
        Series("b", [1.0, 2.0], [1.0, 2.0], "points", shade=[0.0, 1.0]),
        Series("c", [1.0, 2.0], [1.0, 2.0], "bars", width=[0.5, 0.5]),
    ], marks=[Mark("y", 2.0, "limit")], shade_title="score", x_ticks=[(1.0, "one")],
)  # fmt: skip
FOREST = Chart("two", "Who?", "x", "", [Series("", [1.0], ["who & why"], "points", low=[0.5], high=[2.0], across=True)])


def test_numbers_keep_four_digits_and_what_is_not_finite_becomes_null():
    assert short_numbers([1.23456, float("nan"), float("inf"), 3, "x", None]) == [1.235, None, None, 3, "x", None]
    assert json.dumps(CHART.plain(), allow_nan=False)


def test_every_finite_value_is_in_a_bin():
    values = np.array([np.nan, 0.0, 1.0, 2.0, 2.0, np.inf])
    edges, bins = histogram(values, 4)
    assert np.bincount(bins, minlength=4).tolist() == [1, 0, 1, 2] and edges[0] == 0 and edges[-1] == 2


def test_a_long_tail_goes_into_the_outermost_bin():
    values = np.append(np.linspace(0, 1, 999), 1e6)
    edges, bins = histogram(values, 10)
    assert edges[-1] < 2 and len(bins) == 1000 and (bins == 9).sum() >= 100


def test_a_constant_has_a_histogram():
    edges, bins = histogram(np.full(5, 2.0), 4)
    assert len(set(bins)) == 1 and edges[0] < 2 < edges[-1]


def test_magnitudes_far_apart_are_stretched_and_ticks_stand_where_their_value_is():
    assert Stretch.of(np.linspace(-1, 1, 100)).unit == 0, "a plain scale will do"
    stretch = Stretch.of(np.array([-(10.0**k) for k in range(-3, 3)] + [10.0**k for k in range(-3, 5)]))
    assert stretch.unit > 0
    ticks = stretch.ticks(-100, 1e4)
    places = [at for at, _ in ticks]
    assert places == sorted(places) and 0.0 in places
    for at, label in ticks:
        assert at == pytest.approx(float(stretch(float(label))))


def test_figures_are_png_and_svg_with_text_as_text_and_the_same_bytes_each_time(tmp_path):
    first = write_figures([CHART, FOREST], tmp_path / "a")
    second = write_figures([CHART, FOREST], tmp_path / "b")
    assert [path.name for path in first] == ["one.png", "one.svg", "two.png", "two.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert first[0].read_bytes().startswith(b"\x89PNG")
    words = "".join(ET.parse(first[1]).getroot().itertext())
    assert "y $ <b>" in words and "a <b> $x$ \ufffd" in words and "limit" in words
    assert "who & why" in "".join(ET.parse(first[3]).getroot().itertext())


@pytest.mark.parametrize(
    ("values", "labels"),
    [([120.0, 8000.0], {"200", "500", "1000", "2000", "5000"}), ([1.0, 1e6], set())],
    ids=["few decades", "many"],
)
def test_a_logarithmic_axis_of_few_decades_has_labels_that_do_not_touch(tmp_path, values, labels):
    chart = Chart("log", "?", "x", "y", [Series("", values, [1.0, 2.0])], x_log=True)
    svg = ET.parse(write_figures([chart], tmp_path)[1]).getroot()
    written = {"".join(element.itertext()).strip() for element in svg.iter("{http://www.w3.org/2000/svg}text")}
    assert labels <= written and not any("×" in text for text in written)
