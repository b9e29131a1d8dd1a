"""Benchmarks of selectors and intervals on the smallest size: as many rows as asked for, and right values."""

import json

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from scripts import bench_selectors, bench_spice, simulate_intervals


def printed_lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("mode", ["full", "diagonal"])
def test_spice_selects_the_share_that_was_asked_for(mode, capsys):
    bench_spice.main(["--rows=300", "--width=8", "--fraction=0.1", f"--mode={mode}", "--conflict=0"])
    (figures,) = printed_lines(capsys)
    assert (figures["rows"], figures["width"], figures["mode"], figures["selected"]) == (300, 8, mode, 30)
    assert figures["seconds"] >= 0 and figures["peak_gib"] > 0 and figures["log_determinant"] > 0


def test_larger_gradients_have_a_larger_determinant(capsys):
    for scale in (1, 4):
        bench_spice.main(["--rows=200", "--width=8", "--spectrum=flat", f"--scale={scale}"])
    plain, scaled = printed_lines(capsys)
    assert scaled["log_determinant"] > plain["log_determinant"] + 8  # 8 directions, each up to ln 16 more


def test_a_decaying_spectrum_has_the_deviation_of_its_direction():
    rows = bench_spice.draw_projections(20_000, 4, "decaying", 0)[0]
    deviations = rows.std(axis=0)
    np.testing.assert_allclose(deviations / deviations[0], 1 / np.sqrt([1, 2, 3, 4]), rtol=0.05)


def test_k_center_prints_the_radius_of_its_selection(capsys):
    bench_selectors.main(["--selector=k_center", "--rows=400", "--count=5", "--width=4", "--shards", "1", "4"])
    one_round, two_rounds = printed_lines(capsys)
    assert (one_round["shards"], two_rounds["shards"]) == (1, 4)
    points = bench_selectors.clustered_rows(400, 4, 0)
    best = min(cdist(points, points[[row]]).max() for row in range(400))
    for figures in (one_round, two_rounds):
        assert (figures["rows"], figures["count"], figures["selector"]) == (400, 5, "k_center")
        assert 0 < figures["value"] <= 2 * best, "five centres reach further than twice what one does"


def test_more_rows_are_worth_more_to_spice_and_facility_location(capsys):
    for selector in ("spice", "facility_location"):
        for count in (5, 20):
            bench_selectors.main([f"--selector={selector}", "--rows=400", f"--count={count}", "--width=4"])
        few, many = printed_lines(capsys)
        assert many["value"] > few["value"] > 0


def test_recall_of_neighbours_is_one_where_all_are_compared(capsys):
    bench_selectors.main(["--selector=facility_location", "--rows=300", "--count=5", "--neighbours=16"])
    selection, recall = printed_lines(capsys)
    assert selection["neighbours"] == 16 and 0 < selection["value"] <= 1
    assert recall == {"recall": 1.0}


def test_neighbours_are_refused_where_no_selector_reads_them(capsys):
    with pytest.raises(SystemExit):
        bench_selectors.main(["--selector=spice", "--rows=300", "--neighbours=16"])
    assert "--neighbours are of --selector facility_location" in capsys.readouterr().err


def test_simulated_intervals_have_a_line_for_each_method(tmp_path, capsys):
    json_file = tmp_path / "intervals.json"
    simulate_intervals.main(["--experiments=20", "--resamples=5", f"--json={json_file}"])
    printed = capsys.readouterr().out
    lines = json.loads(json_file.read_text())
    methods = list(simulate_intervals.list_methods(5))
    assert len(lines) == 120 * len(methods) and "120 settings" in printed
    assert all(0 <= line["coverage"] <= 1 and line["width"] > 0 for line in lines)
    coverage, by_seeds, by_spread = printed.split("\n\n")[:3]
    for table in (coverage, by_seeds, by_spread):
        assert all(f"| {method} " in table for method in methods)
    own = [line["coverage"] for line in lines if line["method"] == "t, two ways"]
    row = next(line for line in coverage.splitlines() if line.startswith("| t, two ways  "))
    values = [float(cell) for cell in row.split("|")[2:5]]
    assert values == pytest.approx([min(own), np.mean(own), max(own)], abs=5e-4)
    assert np.mean(own) > 0.9
