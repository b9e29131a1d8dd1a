"""Statistics of columns of numbers about rows, which lie in memory or, for a large dataset, on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gradfiltering.statistics.rank_correlation import spearman_correlation


class RowColumns(Protocol):
    """Columns of N numbers each, of which statistics are asked.

    `gradfiltering.shards` has a class for columns on disk; its answers agree with those of `ArrayColumns` to rounding.
    """

    @property
    def names(self) -> Sequence[str]:
        """Names of the columns."""
        ...

    @property
    def row_count(self) -> int:
        """N."""
        ...

    def mean(self, column_name: str) -> float:
        """Compute the mean of a column; NaN without rows."""
        ...

    def median(self, column_name: str) -> float:
        """Compute the median of a column, the mean of the two in the middle where N is even."""
        ...

    def share_above_zero(self, column_name: str) -> float:
        """Compute the share of rows whose value is greater than 0."""
        ...

    def share_below_zero(self, column_name: str) -> float:
        """Compute the share of rows whose value is less than 0; NaN without rows."""
        ...

    def is_finite(self, column_name: str) -> bool:
        """Return True where no value is NaN or infinite."""
        ...

    def is_constant(self, column_name: str) -> bool:
        """Return True where all values are equal."""
        ...

    def correlate_ranks(self, column_pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        """Compute Spearman's correlation of each pair of columns, as `spearman_correlation` does."""
        ...


@dataclass(frozen=True)
class ArrayColumns:
    """Columns in memory.

    Attributes:
        arrays: name -> [N] numbers.
    """

    arrays: Mapping[str, np.ndarray]

    @property
    def names(self) -> Sequence[str]:
        """Names of the columns."""
        return list(self.arrays)

    @property
    def row_count(self) -> int:
        """N."""
        return len(next(iter(self.arrays.values())))

    def mean(self, column_name: str) -> float:
        """Compute the mean of a column; NaN without rows."""
        return float(self.arrays[column_name].mean())

    def median(self, column_name: str) -> float:
        """Compute the median of a column."""
        return float(np.median(self.arrays[column_name]))

    def share_above_zero(self, column_name: str) -> float:
        """Compute the share of rows whose value is greater than 0."""
        return float((self.arrays[column_name] > 0).mean())

    def share_below_zero(self, column_name: str) -> float:
        """Compute the share of rows whose value is less than 0."""
        return float((self.arrays[column_name] < 0).mean())

    def is_finite(self, column_name: str) -> bool:
        """Return True where no value is NaN or infinite."""
        return bool(np.isfinite(self.arrays[column_name]).all())

    def is_constant(self, column_name: str) -> bool:
        """Return True where all values are equal."""
        values = self.arrays[column_name]
        return bool((values == values[0]).all())

    def correlate_ranks(self, column_pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        """Compute Spearman's correlation of each pair of columns."""
        return [spearman_correlation(self.arrays[first], self.arrays[second]) for first, second in column_pairs]
