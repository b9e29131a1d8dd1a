"""Curves against closed forms."""

import numpy as np
import pytest

from gradfiltering.reports.page.convergence import compare, convergence_charts, first_reach, mean_until
from gradfiltering.reports.page.folder import RunFolder

X, Y = np.array([0.0, 10.0, 30.0]), np.array([4.0, 2.0, 1.0])


def test_mean_loss_is_the_area_of_trapezes_by_length():
    assert mean_until(X, Y, 30) == pytest.approx((30 + 30) / 30)
    assert mean_until(X, Y, 20) == pytest.approx((30 + (2 + 1.5) / 2 * 10) / 20)
    assert mean_until(X, Y, 0) is None


def test_a_level_is_reached_between_points():
    assert first_reach(X, Y, 3.0) == pytest.approx(5)
    assert first_reach(X, Y, 1.5) == pytest.approx(20)
    assert first_reach(X, Y, 5.0) == 0 and first_reach(X, Y, 0.5) is None


def test_models_are_compared_where_all_were_measured(whole):
    found = compare(RunFolder(whole), "examples")
    assert (found.level, found.until) == (2.0, 20)
    candidate, other = found.models
    assert (candidate.model, other.model) == ("candidate", "random")
    assert candidate.mean_loss == pytest.approx(2.5) and other.mean_loss == pytest.approx(3.0)
    assert candidate.reached == pytest.approx(20 * 2 / 3) and other.reached == pytest.approx(20)
    charts = {chart.name: chart for chart in convergence_charts(RunFolder(whole))}
    assert list(charts) == [
        f"{loss}_{axis}" for loss in ("heldout", "train") for axis in ("examples", "tokens", "seconds")
    ]
    assert list(charts["train_tokens"].series[0].x) == [200], "nothing is trained at the start"


def test_without_targets_there_is_nothing(bare):
    assert compare(RunFolder(bare), "examples") is None and convergence_charts(RunFolder(bare)) == []
