"""Farthest-first selection over embeddings."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gradfiltering.options import PositiveInt, options
from gradfiltering.requests import Embeddings, Evidence, Request
from gradfiltering.scorers.base import Scores
from gradfiltering.selectors.base import Budget, Selection
from gradfiltering.selectors.two_rounds import select_in_two_rounds

BLOCK_ROWS = 8192  # rows whose distances to all centres are held at once
BLOCK_CENTRES = 1024


@dataclass(frozen=True)
class FarthestFirst:
    """Rows selected farthest first.

    Attributes:
        selected: positions among the candidates, in the order of selection.
        distances: of each to the nearest selected before it.
        radius: greatest distance of a candidate to the nearest selected row.
    """

    selected: list[int]
    distances: list[float]
    radius: float


@options
class KCenterSelector(Budget):
    """Select the row farthest from all selected ones, again and again.

    Source: Sener and Savarese, ICLR 2018, alg. 1. The greedy selection covers all rows within at
    most twice the smallest possible radius (Gonzalez, 1985). The first is the row nearest to the
    mean. Outliers are far from everything, so they come early.

    With `shards` the rows are selected in two rounds: each shard's, then among these. Where each
    shard selects as many rows as the whole, the radius is at most four times the smallest possible
    (Malkomes et al., NIPS 2015): every row is within twice of a row that its shard selected, and
    that row within twice of a row that the second round selected.

    Attributes:
        shards: random parts of the rows, in each of which a first round selects; a second selects among their
            selections. 1 for one round over all rows.
    """

    shards: PositiveInt = 1

    requests: ClassVar[frozenset[Request[Any]]] = frozenset({Embeddings()})
    uses_scores: ClassVar[bool] = False

    def select(self, evidence: Evidence, total_rows: int, scores: Scores | None) -> Selection:
        """Select centres; `selection.parquet` holds the distance at which each was selected."""
        points = evidence.get(Embeddings())  # [N, D]
        row_count = self.rows_to_select(total_rows, len(points))
        if self.shards == 1:
            picks = select_farthest_first(points, row_count)
            selected_rows, selection_facts = np.asarray(picks.selected), {"radius": picks.radius}
        else:

            def select_among(row_indices: np.ndarray, count: int) -> FarthestFirst:
                return select_farthest_first(points[row_indices], count)

            two_rounds = select_in_two_rounds(
                len(points), row_count, self.shards, evidence.seed, select_among, select_among, value_of=None
            )
            picks, selected_rows = two_rounds.picks, two_rounds.selected_rows
            selection_facts = {"radius": covering_radius(points, points[selected_rows]), **two_rounds.facts}
        selected_ids = evidence.example_ids[selected_rows]
        trace = {"example_id": selected_ids, "distance": np.asarray(picks.distances)}
        return Selection(sorted(selected_ids.tolist()), selection_facts, trace)


def select_farthest_first(points: np.ndarray, budget_rows: int) -> FarthestFirst:
    """Select among [n, D] vectors, the one nearest to their mean first."""
    starts = range(0, len(points), BLOCK_ROWS)
    blocks = [np.square(points[start : start + BLOCK_ROWS], dtype=np.float64).sum(1) for start in starts]
    squared_lengths = np.concatenate(blocks)  # [n]

    def distances_to(centre: np.ndarray, squared_length: float) -> np.ndarray:
        squares = squared_lengths - 2 * (points @ centre) + squared_length
        distances: np.ndarray = np.sqrt(np.maximum(squares, 0))
        return distances

    mean_point = points.mean(0)
    mean_square = float(np.square(mean_point, dtype=np.float64).sum())
    next_row = int(np.argmin(distances_to(mean_point, mean_square)))
    nearest_distance = np.full(len(points), np.inf)  # [n] to the nearest selected row
    selected, selected_distances = [], []
    for _ in range(budget_rows):
        selected.append(next_row)
        selected_distances.append(float(nearest_distance[next_row]))
        row_distances = distances_to(points[next_row], float(squared_lengths[next_row]))
        nearest_distance = np.minimum(nearest_distance, row_distances)
        nearest_distance[next_row] = -np.inf
        next_row = int(np.argmax(nearest_distance))
    return FarthestFirst(selected, selected_distances, float(max(nearest_distance.max(), 0.0)))


def covering_radius(points: np.ndarray, centres: np.ndarray) -> float:
    """Return the greatest distance of [N, D] vectors to the nearest of [k, D] centres."""
    centre_squares = np.square(centres, dtype=np.float64).sum(1)
    largest_square = 0.0
    for start in range(0, len(points), BLOCK_ROWS):
        block = points[start : start + BLOCK_ROWS]
        nearest_square = np.full(len(block), np.inf)
        for first in range(0, len(centres), BLOCK_CENTRES):
            some_centres = slice(first, first + BLOCK_CENTRES)
            squares = centre_squares[some_centres] - 2 * (block @ centres[some_centres].T)
            nearest_square = np.minimum(nearest_square, squares.min(1))
        nearest_square += np.square(block, dtype=np.float64).sum(1)
        largest_square = max(largest_square, float(nearest_square.max()))
    return float(np.sqrt(largest_square))
