"""All of the data."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradfiltering.scorers.base import Scores


@dataclass(frozen=True)
class FullSelector:
    """Takes every row that can be trained on."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def wanted(self, total: int) -> int:
        """All of them."""
        return total

    def select(self, example_ids: np.ndarray, total: int, scores: Scores | None, seed: int) -> list[int]:
        """All rows, in ascending order of id."""
        return example_ids.tolist()
