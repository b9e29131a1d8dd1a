"""Curves against closed forms."""

import numpy as np
import pytest

from gradfiltering.reports.page.convergence_curves import (
    compare_convergence,
    draw_convergence,
    find_first_reach,
    mean_loss_until,
)
from gradfiltering.reports.run_files import RunFiles

X, Y = np.array([0.0, 10.0, 30.0]), np.array([4.0, 2.0, 1.0])


def test_mean_loss_is_the_area_of_trapezes_by_length():
    assert mean_loss_until(X, Y, 30) == pytest.approx((30 + 30) / 30)
    assert mean_loss_until(X, Y, 20) == pytest.approx((30 + (2 + 1.5) / 2 * 10) / 20)
    assert np.isnan(mean_loss_until(X, Y, 0))


def test_a_level_is_reached_between_points():
    assert find_first_reach(X, Y, 3.0) == pytest.approx(5)
    assert find_first_reach(X, Y, 1.5) == pytest.approx(20)
    assert find_first_reach(X, Y, 5.0) == 0 and np.isnan(find_first_reach(X, Y, 0.5))


def test_models_are_compared_where_all_were_measured(whole):
    table, level = compare_convergence(RunFiles(whole))
    assert (level, table.attrs["stretch_ends"]["examples"]) == (2.0, 20) and list(table.index) == [
        "candidate",
        "random",
    ]
    assert table["mean examples"].tolist() == pytest.approx([2.5, 3.0])
    assert table["reach examples"].tolist() == pytest.approx([20 * 2 / 3, 20])
    charts = {chart.name: chart for chart in draw_convergence(RunFiles(whole))}
    assert list(charts) == [
        f"{loss}_{axis}" for loss in ("heldout", "train") for axis in ("examples", "tokens", "seconds")
    ]
    assert charts["train_tokens"].data.query("series == 'candidate'")["x"].tolist() == [200], (
        "nothing is trained at the start"
    )


def test_without_targets_there_is_nothing(bare):
    assert compare_convergence(RunFiles(bare)) is None and draw_convergence(RunFiles(bare)) == []
