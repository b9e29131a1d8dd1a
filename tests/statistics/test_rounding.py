"""Counts of rows from shares: halves go up, whatever the binary number."""

from decimal import ROUND_FLOOR, Decimal

import pytest

from gradfiltering.selectors.base import Budget
from gradfiltering.statistics.rounding import round_half_up, share_of_count
from gradfiltering.synthetic.planted_defects import PlantedDefects
from tests.support.small_targets import tuning_settings

SHARES = [0.005, 0.01, 0.025, 0.05, 0.1, 0.145, 0.15, 0.285, 0.3, 0.35, 0.45, 0.55, 0.565, 0.575, 0.7, 1.005 / 3, 1.0]


@pytest.mark.parametrize("share", SHARES)
def test_a_share_of_rows_is_the_decimal_one(share):
    for total in range(1000):
        exact = Decimal(str(share)) * total + Decimal("0.5")
        assert share_of_count(share, total) == int(exact.to_integral_value(ROUND_FLOOR)), total


@pytest.mark.parametrize(
    ("fraction", "total", "rows"),
    [(0.1, 25, 3), (0.1, 5, 1), (0.15, 30, 5), (0.5, 5, 3), (0.145, 100, 15), (0.1, 45, 5)],
)
def test_a_budget_of_half_a_row_is_rounded_up(fraction, total, rows):
    assert Budget(fraction, None).budget_rows(total) == rows


@pytest.mark.parametrize(("value", "rounded"), [(0.5, 1), (1.5, 2), (2.5, 3), (-0.5, 0), (2.4999, 2), (7, 7)])
def test_halves_are_rounded_up(value, rounded):
    assert round_half_up(value) == rounded


def test_planted_rows_and_warm_up_steps_are_rounded_up_too():
    rows = [{"instruction": f"ask {number}", "output": f"words of row {number}"} for number in range(25)]
    _, kinds = PlantedDefects(gibberish=0.1).plant(rows, 0, ("instruction",), "output", None)
    assert kinds.count("gibberish") == 3
    settings = tuning_settings(schedule="constant", warmup_share=0.1, lr=1.0)
    assert [settings.learning_rate(step, length=25) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
