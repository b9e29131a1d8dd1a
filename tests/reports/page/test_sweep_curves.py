"""A sweep's candidates in one chart: a line a method, means over seeds, what they are compared with beside them."""

import numpy as np
import pytest
from rich.console import Console

from gradfiltering.reports.page.sweep_curves import draw_sweep_curves
from gradfiltering.reports.sweep_jobs import find_varying_options, read_jobs
from gradfiltering.reports.sweep_table import write_sweep
from tests.reports.folders import config_of, write_run

HEAD = "step,examples_seen,tokens_seen,seconds,train_loss,heldout_loss\n"


def write_curve(run, model, examples, heldout):
    """A curve whose training loss is half its held-out loss; nothing is trained at the start."""
    rows = [
        f"{n},{x},{9 * x},{n},{'' if x == 0 else y / 2},{y}\n"
        for n, (x, y) in enumerate(zip(examples, heldout, strict=True))
    ]
    place = run / "target" / model / "curve.csv"
    place.parent.mkdir(parents=True)
    place.write_text(HEAD + "".join(rows))


def job(folder, number, method, selection, examples, heldout, asked=(), **config):
    """A job whose full-data model saw four times as many examples, and whose random subset as many as its own."""
    run = folder / str(number)
    asked = [f"method={method}", *asked]
    write_run(run, {**config_of(run), **config}, asked, selection=selection)
    write_curve(run, "candidate", examples, heldout)
    write_curve(run, "random", examples, [4.0, *heldout[1:]])
    write_curve(run, "full", [4 * x for x in examples], [4.0] * len(examples))


GSNR, IFD, RANDOM = (
    {"scorer": scorer, "selector": selector, "selected": 2}
    for scorer, selector in (("gsnr", "top"), ("ifd", "top"), (None, "random"))
)


def charts_of(folder):
    jobs = read_jobs(folder)
    return {chart.name: chart for chart in draw_sweep_curves(jobs, find_varying_options(jobs))}


def points(chart):
    groups = chart.data.groupby("series", sort=False)
    return {name: (group["x"].tolist(), group["y"].tolist()) for name, group in groups}


def is_logarithmic(chart):
    return "'log'" in str(chart.specification())


def test_a_line_is_the_mean_over_seeds_where_all_were_measured(tmp_path):
    job(tmp_path, 0, "gradfiltering", GSNR, [0, 10, 20], [4, 2, 1], ["seed=0"])
    job(tmp_path, 1, "gradfiltering", GSNR, [0, 8, 16], [4, 3, 2], ["seed=1"])
    job(tmp_path, 2, "superfiltering", IFD, [0, 10, 20], [4, 3, 3], ["seed=0"])
    charts = charts_of(tmp_path)
    assert list(charts) == ["heldout_examples", "train_examples"]
    heldout, train = points(charts["heldout_examples"]), points(charts["train_examples"])
    assert list(heldout) == list(train) == ["gsnr", "ifd", "random", "full"]
    assert heldout["gsnr"] == ([0, 10], [4, pytest.approx((2 + 2.75) / 2)])
    assert heldout["ifd"] == ([0, 10, 20], [4, 3, 3])
    assert train["ifd"] == ([10, 20], [1.5, 1.5]), "nothing is trained at the start"


def test_curves_of_very_different_length_get_a_logarithmic_axis(tmp_path):
    job(tmp_path, 0, "gradfiltering", GSNR, [0, 10, 20], [4, 2, 1])
    assert not is_logarithmic(charts_of(tmp_path)["heldout_examples"])
    job(tmp_path, 1, "superfiltering", IFD, [0, 5], [4, 3])
    chart = charts_of(tmp_path)["heldout_examples"]
    assert is_logarithmic(chart) and "logarithmic" in chart.reading
    assert points(chart)["gsnr"] == ([10, 20], [2, 1])


def test_a_random_candidate_is_the_random_line(tmp_path):
    job(tmp_path, 0, "gradfiltering", GSNR, [0, 10], [4, 2])
    job(tmp_path, 1, "random", RANDOM, [0, 10], [4, 3])
    lines = points(charts_of(tmp_path)["heldout_examples"])
    assert list(lines) == ["gsnr", "random", "full"] and lines["random"][1] == [4, 3]


def test_other_options_have_charts_of_their_own_and_members_lines(tmp_path):
    for number, (lr, members) in enumerate(((1, 3), (1, 5), (2, 3))):
        asked = [f"ensemble.lr={lr}", f"ensemble.m={members}"]
        job(tmp_path, number, "gradfiltering", GSNR, [0, 10], [4, 2], asked, ensemble={"m": members})
    charts = charts_of(tmp_path)
    assert list(charts) == ["heldout_examples_0", "train_examples_0", "heldout_examples_1", "train_examples_1"]
    assert list(points(charts["train_examples_0"])) == ["gsnr, M = 3, e1_e2", "gsnr, M = 5, e1_e2", "random", "full"]
    assert list(points(charts["train_examples_1"])) == ["gsnr", "random", "full"]
    assert "(ensemble.lr=2)" in charts["train_examples_1"].question


@pytest.mark.parametrize("figures", [True, False])
def test_the_page_shows_them_and_writes_files_where_its_jobs_do(tmp_path, figures):
    job(tmp_path, 0, "gradfiltering", GSNR, [0, 10], [4, 2], report={"figures": figures})
    write_sweep(tmp_path, Console(quiet=True))
    text = (tmp_path / "sweep.html").read_text("utf-8")
    assert 'data-chart="heldout_examples"' in text and 'data-chart="train_examples"' in text
    written = sorted(path.name for path in (tmp_path / "figures").glob("*"))
    names = [f"{loss}_examples.{kind}" for loss in ("heldout", "train") for kind in ("png", "svg")]
    assert written == (names if figures else [])


def test_a_sweep_without_targets_has_none(tmp_path):
    write_run(tmp_path / "0", {**config_of(tmp_path / "0"), "report": {"figures": True}})
    write_sweep(tmp_path, Console(quiet=True))
    assert charts_of(tmp_path) == {} and not (tmp_path / "figures").exists()
    assert 'id="curves"' not in (tmp_path / "sweep.html").read_text("utf-8")


def test_a_loss_that_was_never_measured_has_no_chart(tmp_path):
    job(tmp_path, 0, "gradfiltering", GSNR, [0, 10], [np.nan, np.nan])
    for model in ("random", "full"):
        (tmp_path / "0" / "target" / model / "curve.csv").unlink()
    assert charts_of(tmp_path) == {}
