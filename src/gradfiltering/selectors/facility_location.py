"""Facility location over embeddings."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from gradfiltering.errors import attributed_to
from gradfiltering.options import PositiveInt, options
from gradfiltering.requests import Embeddings, Evidence, Request
from gradfiltering.scorers.base import Scores
from gradfiltering.seeding import numpy_rng
from gradfiltering.selectors.base import Budget, Selection
from gradfiltering.selectors.greedy import lazy_argmax
from gradfiltering.selectors.neighbours import find_nearest
from gradfiltering.selectors.two_rounds import TwoRounds, select_in_two_rounds

BLOCK_ROWS = 1024  # columns of the similarity matrix made at once; the whole is never held
ROUNDING = 1e-6  # squared distances below this are those of equal float32 vectors


@dataclass(frozen=True)
class Cover:
    """A greedy selection by the rows that it covers.

    Attributes:
        selected: positions among the candidates, in the order of selection.
        gains: sum of the similarity that each added.
        coverage: mean similarity of the covered rows to the nearest selected one.
    """

    selected: list[int]
    gains: list[float]
    coverage: float


@options
class FacilityLocationSelector(Budget):
    r"""Greedy maximum of \(\sum_i \max_{j ∈ S} s(i, j)\): each row is like some selected row.

    After a first cut by IFD this is Superfiltering.D (Li et al., ACL 2024, sec. 5;
    `selector=two_stage`). The greedy selection reaches (1 − 1/e) of the best (Nemhauser et al.,
    1978); lazy evaluation gives the same selection. It takes N² similarities; with `shards` m it takes
    N²/m in the first of two rounds and about m·k·N/m in the second (`two_rounds` has their bounds).

    Attributes:
        similarity: `euclidean` for 1/(1 + distance) between vectors of length 1, as in the
            published code, or `cosine`, where negative cosines count 0.
        neighbours: rows that each row is compared with, its nearest; others count as the last of these. None
            for all rows, in time N². Past 400 million pairs the nearest are found by an index, not all of them.
        shards: random parts of the rows, in each of which a first round selects; a second selects among their
            selections. 1 for one round over all rows.
    """

    similarity: Literal["euclidean", "cosine"] = "euclidean"
    neighbours: PositiveInt | None = None
    shards: PositiveInt = 1

    requests: ClassVar[frozenset[Request[Any]]] = frozenset({Embeddings()})
    uses_scores: ClassVar[bool] = False

    def select(self, evidence: Evidence, total_rows: int, scores: Scores | None) -> Selection:
        """Select rows that cover all rows; `selection.parquet` holds the gains."""
        points = unit_rows(evidence.get(Embeddings()))
        row_count = self.rows_to_select(total_rows, len(points))
        if self.shards == 1:
            cover = self.cover(points, points, row_count)
            selected_rows, selection_facts = np.asarray(cover.selected), {"coverage": cover.coverage}
        else:
            two_rounds = self._cover_in_two_rounds(points, row_count, evidence.seed)
            cover, selected_rows = two_rounds.picks, two_rounds.selected_rows
            selection_facts = {"coverage": cover.coverage, **two_rounds.facts}
        selected_ids = evidence.example_ids[selected_rows]
        trace = {"example_id": selected_ids, "gain": np.asarray(cover.gains)}
        return Selection(sorted(selected_ids.tolist()), selection_facts, trace)

    def cover(self, covered: np.ndarray, candidates: np.ndarray, budget_rows: int) -> Cover:
        """Select candidates greedily.

        Args:
            covered: [n, D] vectors that are to be like some selected one.
            candidates: [c, D] vectors to select from.
            budget_rows: at most c.
        """
        if self.neighbours is not None and self.neighbours < len(candidates):
            return self._cover_neighbours(covered, candidates, budget_rows, self.neighbours)
        nearest_similarity = np.zeros(len(covered))  # [n] of each row to the nearest selected one

        def block_gains(block_rows: np.ndarray) -> np.ndarray:
            added = np.maximum(self.similarities(covered, candidates[block_rows]) - nearest_similarity[:, None], 0)
            gains: np.ndarray = added.sum(0, dtype=np.float64)
            return gains

        def evaluate(candidate_rows: np.ndarray) -> np.ndarray:
            starts = range(0, len(candidate_rows), BLOCK_ROWS)
            gains = np.concatenate([block_gains(candidate_rows[start : start + BLOCK_ROWS]) for start in starts])
            gain_bounds[candidate_rows] = gains
            return gains

        gain_bounds = np.empty(len(candidates))  # [c] each candidate's gain when it was last evaluated
        evaluate(np.arange(len(candidates)))
        selected, selected_gains = [], []
        for _ in range(budget_rows):
            best_row, gain = lazy_argmax(gain_bounds, evaluate)
            best_similarity = self.similarities(covered, candidates[[best_row]])[:, 0]
            nearest_similarity = np.maximum(nearest_similarity, best_similarity)
            gain_bounds[best_row] = -np.inf
            selected.append(best_row)
            selected_gains.append(gain)
        return Cover(selected, selected_gains, float(nearest_similarity.mean()))

    def _cover_neighbours(self, covered: np.ndarray, candidates: np.ndarray, budget_rows: int, count: int) -> Cover:
        """Select by the similarity of each covered row to its nearest candidates, beyond that to the last of them."""
        with attributed_to(self, "neighbours"):
            neighbours, cosines = find_nearest(covered, candidates, count)
        similarities = np.where(neighbours >= 0, self.similarity_of(cosines), 0)  # [n, K]
        least_similarity = similarities[:, -1]  # [n] of each row to whatever is no neighbour of it
        is_found = neighbours >= 0
        excess = np.maximum(similarities - least_similarity[:, None], 0)[is_found]
        covered_rows, neighbour_rows = np.nonzero(is_found)[0], neighbours[is_found]
        order = np.argsort(neighbour_rows, kind="stable")
        covered_rows, excess = covered_rows[order], excess[order].astype(np.float64)
        starts = np.searchsorted(neighbour_rows[order], np.arange(len(candidates) + 1))  # [c + 1] of each candidate's
        gain_bounds = np.bincount(neighbour_rows[order], excess, minlength=len(candidates))
        covered_excess = np.zeros(len(covered))  # [n] of each row's nearest selected neighbour

        def evaluate(candidate_rows: np.ndarray) -> np.ndarray:
            for candidate in candidate_rows.tolist():
                entries = slice(starts[candidate], starts[candidate + 1])
                added = np.maximum(excess[entries] - covered_excess[covered_rows[entries]], 0)
                gain_bounds[candidate] = added.sum()
            gains: np.ndarray = gain_bounds[candidate_rows]
            return gains

        selected, selected_gains = [], []
        for _ in range(budget_rows):
            best_row, gain = lazy_argmax(gain_bounds, evaluate)
            entries = slice(starts[best_row], starts[best_row + 1])
            rows = covered_rows[entries]
            covered_excess[rows] = np.maximum(covered_excess[rows], excess[entries])
            gain_bounds[best_row] = -np.inf
            selected.append(best_row)
            selected_gains.append(gain)
        return Cover(selected, selected_gains, float((least_similarity + covered_excess).mean()))

    def _cover_in_two_rounds(self, points: np.ndarray, budget_rows: int, seed: int) -> TwoRounds[Cover]:
        """Select in shards, each row of which is to be covered, then among their selections.

        A sum over all rows is estimated over as many random rows as a shard has (Mirzasoleiman et al., NIPS 2013, on
        decomposable functions): the second round covers these, and by them selections are compared.
        """
        sample_size = -(-len(points) // min(self.shards, len(points)))
        sample = numpy_rng(seed, "rows to cover").choice(len(points), size=sample_size, replace=False)
        covered_sample = points[np.sort(sample)]

        def select_in_shard(row_indices: np.ndarray, count: int) -> Cover:
            return self.cover(points[row_indices], points[row_indices], count)

        def select_in_union(row_indices: np.ndarray, count: int) -> Cover:
            return self.cover(covered_sample, points[row_indices], count)

        def value_of(row_indices: np.ndarray, cover: Cover) -> float:
            return self.coverage_of(covered_sample, points[row_indices[cover.selected]])

        return select_in_two_rounds(
            len(points), budget_rows, self.shards, seed, select_in_shard, select_in_union, value_of
        )

    def coverage_of(self, covered: np.ndarray, selected: np.ndarray) -> float:
        """Return the mean over [n, D] vectors of the similarity to the nearest of [k, D] selected ones."""
        nearest_similarity = np.zeros(len(covered))
        for start in range(0, len(selected), BLOCK_ROWS):
            block = np.arange(start, min(start + BLOCK_ROWS, len(selected)))
            nearest_similarity = np.maximum(nearest_similarity, self.similarities(covered, selected[block]).max(1))
        return float(nearest_similarity.mean())

    def similarities(self, covered: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """[n, D], [B, D] -> [n, B], in [0, 1]."""
        return self.similarity_of(covered @ candidates.T)

    def similarity_of(self, cosine: np.ndarray) -> np.ndarray:
        """Return the similarities of unit vectors with these cosines, of the same shape."""
        similarities: np.ndarray
        if self.similarity == "cosine":
            similarities = np.maximum(cosine, 0)
        else:
            squared_distance = 2 - 2 * cosine
            squared_distance = np.where(squared_distance < ROUNDING, 0, squared_distance)
            similarities = 1 / (1 + np.sqrt(squared_distance))
        return similarities


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """[N, D] float32 vectors of length 1; zero stays zero."""
    unit_vectors = np.empty(vectors.shape, dtype=np.float32)
    for start in range(0, len(vectors), BLOCK_ROWS):
        block = vectors[start : start + BLOCK_ROWS]
        lengths = np.linalg.norm(block, axis=1, keepdims=True)
        unit_vectors[start : start + BLOCK_ROWS] = block / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit_vectors
