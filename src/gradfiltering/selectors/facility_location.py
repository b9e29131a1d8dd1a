"""Facility location over embeddings."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradfiltering.errors import UserError
from gradfiltering.evidence.base_model import Need
from gradfiltering.scorers.base import Evidence, Scores
from gradfiltering.selectors.base import Budget, Selection, embeddings_of
from gradfiltering.selectors.greedy import lazy_argmax

BLOCK = 1024  # columns of the similarity matrix made at once; the whole is never held
ROUNDING = 1e-6  # squared distances below this are those of equal float32 vectors


@dataclass(frozen=True)
class FacilityLocationSelector(Budget):
    r"""Greedy maximum of \(\sum_i \max_{j ∈ S} s(i, j)\): every row should have a like one among the chosen.

    After a first cut by IFD this is Superfiltering.D (Li et al., ACL 2024, sec. 5; `selector=two_stage`). The greedy
    choice reaches (1 − 1/e) of the best (Nemhauser et al., 1978); lazy evaluation gives the same choice.

    Attributes:
        similarity: `euclidean` for 1/(1 + distance) between vectors of length 1, as in the published code, or `cosine`,
            where negative ones count 0.
    """

    similarity: str

    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings"})

    def __post_init__(self):
        super().__post_init__()
        if self.similarity not in ("euclidean", "cosine"):
            raise UserError(f"selector.similarity={self.similarity}: give euclidean or cosine")

    def select(self, evidence: Evidence, total: int, scores: Scores | None) -> Selection:
        """Rows that cover all rows; `selection.parquet` holds the gains."""
        points = unit_rows(embeddings_of(evidence))
        covered = np.zeros(len(points))  # [N] similarity of each row to the nearest chosen one

        def gains(rows: np.ndarray) -> np.ndarray:
            return np.maximum(self.similarities(points, rows) - covered[:, None], 0).sum(0, dtype=np.float64)

        def evaluate(rows: np.ndarray) -> np.ndarray:
            bounds[rows] = np.concatenate([gains(rows[at : at + BLOCK]) for at in range(0, len(rows), BLOCK)])
            return bounds[rows]

        bounds = np.empty(len(points))  # [N] each row's gain when it was last looked at
        evaluate(np.arange(len(points)))
        order, curve = [], []
        for _ in range(self.rows(total, len(points))):
            best, gain = lazy_argmax(bounds, evaluate)
            covered = np.maximum(covered, self.similarities(points, np.asarray([best]))[:, 0])
            bounds[best] = -np.inf
            order.append(best)
            curve.append(gain)
        chosen = evidence.example_ids[order]
        about = {"coverage": float(covered.mean())}
        return Selection(sorted(chosen.tolist()), about, {"example_id": chosen, "gain": np.asarray(curve)})

    def similarities(self, points: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """[N, D], [B] -> [N, B], in [0, 1]."""
        cosine = points @ points[rows].T
        if self.similarity == "cosine":
            return np.maximum(cosine, 0)
        square = 2 - 2 * cosine
        return 1 / (1 + np.sqrt(np.where(square < ROUNDING, 0, square)))


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """[N, D] float32 vectors of length 1; zero stays zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(length, np.finfo(np.float32).tiny)).astype(np.float32)
