import pytest

from gradfiltering.errors import UserError
from gradfiltering.selectors.base import Budget


@pytest.mark.parametrize(
    ("fraction", "count", "total", "available", "rows"),
    [
        (0.1, None, 52002, 51967, 5200),
        (0.05, None, 52002, 51967, 2600),
        (0.15, None, 52002, 51967, 7800),
        (0.1, None, 7, 7, 1),
        (0.3, None, 9, 5, 3),
        (1.0, None, 9, 5, 5),
        (None, 4, 9, 9, 4),
        (None, 9, 9, 5, 5),
    ],
)
def test_budget_counts_all_rows_and_takes_what_there_is(fraction, count, total, available, rows):
    assert Budget(fraction, count).rows_to_select(total, available) == rows


@pytest.mark.parametrize(
    ("fraction", "count", "message"),
    [
        (None, None, "exactly one"), (0.1, 5, "exactly one"),
        (0.0, None, r"fraction must be a number in \(0, 1\] or null, got 0\.0"),
        (1.01, None, r"fraction must .* got 1\.01"), (-0.1, None, r"fraction must .* got -0\.1"),
        (None, 0, "count must be a positive whole number or null, got 0"),
    ],
)  # fmt: skip
def test_bad_budgets_are_refused_at_once(fraction, count, message):
    with pytest.raises(UserError, match=message):
        Budget(fraction, count)


def test_a_fraction_of_no_row_is_an_error():
    with pytest.raises(UserError, match=r"a share of 0\.01 of 20 rows is no row; give a larger"):
        Budget(0.01, None).rows_to_select(20, 20)


def test_more_rows_than_the_dataset_has_is_an_error():
    with pytest.raises(UserError, match="21 rows are more than the dataset's 20; give a smaller"):
        Budget(None, 21).rows_to_select(20, 20)
