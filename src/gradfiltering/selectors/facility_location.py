"""Facility location over embeddings."""

from typing import Any, ClassVar, Literal

import numpy as np

from gradfiltering.options import options
from gradfiltering.requests import Embeddings, Evidence, Request
from gradfiltering.scorers.base import Scores
from gradfiltering.selectors.base import Budget, Selection
from gradfiltering.selectors.greedy import lazy_argmax

BLOCK_ROWS = 1024  # columns of the similarity matrix made at once; the whole is never held
ROUNDING = 1e-6  # squared distances below this are those of equal float32 vectors


@options
class FacilityLocationSelector(Budget):
    r"""Greedy maximum of \(\sum_i \max_{j ∈ S} s(i, j)\): each row is like some selected row.

    After a first cut by IFD this is Superfiltering.D (Li et al., ACL 2024, sec. 5;
    `selector=two_stage`). The greedy selection reaches (1 − 1/e) of the best (Nemhauser et al.,
    1978); lazy evaluation gives the same selection.

    Attributes:
        similarity: `euclidean` for 1/(1 + distance) between vectors of length 1, as in the
            published code, or `cosine`, where negative cosines count 0.
    """

    similarity: Literal["euclidean", "cosine"] = "euclidean"

    requests: ClassVar[frozenset[Request[Any]]] = frozenset({Embeddings()})
    uses_scores: ClassVar[bool] = False

    def select(self, evidence: Evidence, total_rows: int, scores: Scores | None) -> Selection:
        """Select rows that cover all rows; `selection.parquet` holds the gains."""
        points = unit_rows(evidence.get(Embeddings()))
        coverage = np.zeros(len(points))  # [N] similarity of each row to the nearest selected one

        def block_gains(block_rows: np.ndarray) -> np.ndarray:
            added = np.maximum(self.similarities(points, block_rows) - coverage[:, None], 0)
            return added.sum(0, dtype=np.float64)

        def evaluate(candidates: np.ndarray) -> np.ndarray:
            starts = range(0, len(candidates), BLOCK_ROWS)
            gains = [block_gains(candidates[start : start + BLOCK_ROWS]) for start in starts]
            gain_bounds[candidates] = np.concatenate(gains)
            return gain_bounds[candidates]

        gain_bounds = np.empty(len(points))  # [N] each row's gain when it was last evaluated
        evaluate(np.arange(len(points)))
        selected_rows, selected_gains = [], []
        for _ in range(self.available_rows(total_rows, len(points))):
            best_row, gain = lazy_argmax(gain_bounds, evaluate)
            best_similarity = self.similarities(points, np.asarray([best_row]))[:, 0]
            coverage = np.maximum(coverage, best_similarity)
            gain_bounds[best_row] = -np.inf
            selected_rows.append(best_row)
            selected_gains.append(gain)
        selected_ids = evidence.example_ids[selected_rows]
        trace = {"example_id": selected_ids, "gain": np.asarray(selected_gains)}
        return Selection(sorted(selected_ids.tolist()), {"coverage": float(coverage.mean())}, trace)

    def similarities(self, points: np.ndarray, row_indices: np.ndarray) -> np.ndarray:
        """[N, D], [B] -> [N, B], in [0, 1]."""
        cosine = points @ points[row_indices].T
        if self.similarity == "cosine":
            return np.maximum(cosine, 0)
        squared_distance = 2 - 2 * cosine
        squared_distance = np.where(squared_distance < ROUNDING, 0, squared_distance)
        return 1 / (1 + np.sqrt(squared_distance))


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """[N, D] float32 vectors of length 1; zero stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)
