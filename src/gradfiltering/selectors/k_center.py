"""Farthest-first selection over embeddings."""

from typing import Any, ClassVar

import numpy as np

from gradfiltering.options import options
from gradfiltering.requests import Embeddings, Evidence, Request
from gradfiltering.scorers.base import Scores
from gradfiltering.selectors.base import Budget, Selection


@options
class KCenterSelector(Budget):
    """Select the row farthest from all selected ones, again and again.

    Source: Sener and Savarese, ICLR 2018, alg. 1. The greedy selection covers all rows within at
    most twice the smallest possible radius (Gonzalez, 1985). The first is the row nearest to the
    mean. Outliers are far from everything, so they come early.
    """

    requests: ClassVar[frozenset[Request[Any]]] = frozenset({Embeddings()})
    uses_scores: ClassVar[bool] = False

    def select(self, evidence: Evidence, total_rows: int, scores: Scores | None) -> Selection:
        """Select centres; `selection.parquet` holds the distance at which each was selected."""
        points = evidence.get(Embeddings())  # [N, D]
        squared_lengths = np.square(points, dtype=np.float64).sum(1)

        def distances_to(centre: np.ndarray, squared_length: float) -> np.ndarray:
            squares = squared_lengths - 2 * (points @ centre) + squared_length
            return np.sqrt(np.maximum(squares, 0))

        mean_point = points.mean(0)
        mean_square = float(np.square(mean_point, dtype=np.float64).sum())
        next_row = int(np.argmin(distances_to(mean_point, mean_square)))
        nearest_distance = np.full(len(points), np.inf)  # [N] to the nearest selected row
        selected_rows, selected_distances = [], []
        for _ in range(self.available_rows(total_rows, len(points))):
            selected_rows.append(next_row)
            selected_distances.append(nearest_distance[next_row])
            row_distances = distances_to(points[next_row], float(squared_lengths[next_row]))
            nearest_distance = np.minimum(nearest_distance, row_distances)
            nearest_distance[next_row] = -np.inf
            next_row = int(np.argmax(nearest_distance))
        selected_ids = evidence.example_ids[selected_rows]
        selection_facts = {"radius": float(max(nearest_distance.max(), 0.0))}
        trace = {"example_id": selected_ids, "distance": np.asarray(selected_distances)}
        return Selection(sorted(selected_ids.tolist()), selection_facts, trace)
