"""Farthest-first choice over embeddings."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradfiltering.evidence.base_model import Need
from gradfiltering.scorers.base import Evidence, Scores
from gradfiltering.selectors.base import Budget, Selection, embeddings_of


@dataclass(frozen=True)
class KCenterSelector(Budget):
    """Each next row is the one farthest from all chosen ones (Sener and Savarese, ICLR 2018, alg. 1).

    The greedy choice covers all rows within at most twice the smallest possible radius (Gonzalez, 1985). The first is
    the row nearest to the mean. Outliers are far from everything, so they come early.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings"})

    def select(self, evidence: Evidence, total: int, scores: Scores | None) -> Selection:
        """Centres; `selection.parquet` holds the distance at which each was chosen."""
        points = embeddings_of(evidence)
        squares = np.square(points, dtype=np.float64).sum(1)

        def distances(point: np.ndarray, square: float) -> np.ndarray:
            return np.sqrt(np.maximum(squares - 2 * (points @ point) + square, 0))

        middle = points.mean(0)
        best = int(np.argmin(distances(middle, float(np.square(middle, dtype=np.float64).sum()))))
        nearest = np.full(len(points), np.inf)  # [N] distance to the nearest chosen row
        order, radii = [], []
        for _ in range(self.rows(total, len(points))):
            order.append(best)
            radii.append(nearest[best])
            nearest = np.minimum(nearest, distances(points[best], float(squares[best])))
            nearest[best] = -np.inf
            best = int(np.argmax(nearest))
        chosen = evidence.example_ids[order]
        radius = float(max(nearest.max(), 0.0))
        return Selection(
            sorted(chosen.tolist()), {"radius": radius}, {"example_id": chosen, "distance": np.asarray(radii)}
        )
