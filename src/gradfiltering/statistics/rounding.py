"""Whole numbers of rows from shares: halves are rounded up."""

from fractions import Fraction
from math import floor

HALF = Fraction(1, 2)


def round_half_up(value: float) -> int:
    """Round a number to the nearest whole one, halves up (Python's `round` takes the even neighbour)."""
    return floor(Fraction(value) + HALF)


def share_of_count(share: float, total_count: int) -> int:
    """Return so many of `total_count`, halves rounded up.

    The share is taken as the decimal number that it is written as: 0.145 of 100 is 14.5 and so 15, though the binary
    number nearest to 0.145 lies below it.
    """
    return floor(Fraction(str(float(share))) * total_count + HALF)
