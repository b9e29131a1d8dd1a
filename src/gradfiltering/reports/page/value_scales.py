"""Bins and axes for values of one or of many magnitudes."""

import math
from dataclasses import dataclass

import altair as alt
import numpy as np

MAGNITUDES_APART = 30
MOST_TICKS = 9


def assign_bins(values: np.ndarray, bin_count: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute edges and the bin of each value.

    The range ends at the first and the last percentile where a tail would else squeeze the rest into few bins; values
    beyond it are counted in the outermost bins.

    Args:
        values: [K] finite numbers, at least one.
        bin_count: number of bins.

    Returns:
        [bin_count + 1] edges and [K] bins.
    """
    low, high = float(values.min()), float(values.max())
    near_low, near_high = np.quantile(values, [0.01, 0.99])
    if high - low > 4 * (near_high - near_low) > 0:
        low, high = float(near_low), float(near_high)
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, bin_count + 1)
    return edges, np.clip(np.searchsorted(edges, values, side="right") - 1, 0, bin_count - 1)


@dataclass(frozen=True)
class SymmetricLog:
    """A scale for values of many magnitudes and both signs, as Vega's `symlog`: sign(x) log(1 + |x| / unit).

    Attributes:
        unit: below it the scale is nearly linear; 0 for a plain scale.
    """

    unit: float

    @classmethod
    def fit(cls, values: np.ndarray) -> "SymmetricLog":
        """Choose a plain scale unless the magnitudes of the finite values lie far apart."""
        value_sizes = np.abs(values[np.isfinite(values) & (values != 0)])
        if not len(value_sizes):
            return cls(0.0)
        low, middle, high = np.quantile(value_sizes, [0.02, 0.5, 0.99])
        far_apart = high > MAGNITUDES_APART * middle or middle > MAGNITUDES_APART * low
        return cls(float(low) if far_apart else 0.0)

    @property
    def altair_scale(self) -> alt.Scale:
        """The scale in Altair."""
        return alt.Scale(type="symlog", constant=self.unit) if self.unit else alt.Scale(zero=False, nice=False)

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Transform values to the scale."""
        return np.sign(values) * np.log1p(np.abs(values) / self.unit) if self.unit else values

    def invert(self, positions: np.ndarray) -> np.ndarray:
        """Transform positions on the scale back to values."""
        return np.sign(positions) * np.expm1(np.abs(positions)) * self.unit if self.unit else positions

    def tick_values(self, low: float, high: float) -> list[float]:
        """Choose 0 and powers of ten between two values; none for a plain scale."""
        if not self.unit:
            return []
        largest = max(abs(low), abs(high), 10 * self.unit)
        exponents = range(math.ceil(math.log10(self.unit)), math.floor(math.log10(largest)) + 1)
        powers_of_ten = [10.0**exponent for exponent in exponents]
        candidates = [*(-power for power in reversed(powers_of_ten)), 0.0, *powers_of_ten]
        tick_values = [value for value in candidates if low <= value <= high]
        return tick_values[:: math.ceil(len(tick_values) / MOST_TICKS)] if tick_values else tick_values
