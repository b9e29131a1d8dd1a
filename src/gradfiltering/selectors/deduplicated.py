"""Selection without near-duplicates."""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge

from gradfiltering.options import PositiveInt, Share, options
from gradfiltering.requests import Evidence, Request, RowTokens
from gradfiltering.scorers.base import Scores
from gradfiltering.selectors.base import Budget, Selection, Selector, check_inner_budget
from gradfiltering.selectors.top import TopSelector

MIN_PERMUTATIONS = 64  # with fewer, similarity is not estimated but guessed
# Rows estimated to be this near are looked up even under a higher threshold; banding ends there.
MAX_LOOKUP_THRESHOLD = 0.9


@options
class DeduplicatedSelector(Budget):
    """Select by `inner` among rows of which no two are near-duplicates.

    Rows count as such when the estimated Jaccard similarity of their shingles of token ids reaches
    a threshold (MinHash with banding, Broder 1997; Lee et al., ACL 2022). Of each pair the row of
    higher score stays, or the earlier one where no row is scored.

    Attributes:
        inner: selects; it has the same budget as the whole.
        threshold: similarity in (0, 1].
        permutations: hash functions; more estimate better.
        shingle: tokens of a shingle.
    """

    inner: Selector = TopSelector()
    threshold: Share = 0.8
    permutations: Annotated[int, Ge(MIN_PERMUTATIONS)] = 128
    shingle: PositiveInt = 3

    @property
    def requests(self) -> frozenset[Request[Any]]:
        """Tokens of the rows, and what the inner selector reads."""
        return self.inner.requests | {RowTokens()}

    @property
    def uses_scores(self) -> bool:
        """True where the inner selector does."""
        return self.inner.uses_scores

    def budget_rows(self, total_rows: int) -> int:
        """Return the budget.

        Raises:
            UserError: the inner selector has another.
        """
        row_count = super().budget_rows(total_rows)
        return check_inner_budget("inner", self.inner, row_count, total_rows)

    def select(self, evidence: Evidence, total_rows: int, scores: Scores | None) -> Selection:
        """Select among the rows that stay; `near_duplicates` counts the others."""
        priority_ids = evidence.example_ids if scores is None else scores.example_ids[scores.order]
        row_indices = np.searchsorted(evidence.example_ids, priority_ids)
        distinct_rows = self.distinct_rows(evidence.get(RowTokens()), row_indices)
        distinct_ids = evidence.example_ids[distinct_rows]
        distinct_scores = None if scores is None else scores.select_rows(distinct_ids)
        distinct_evidence = evidence.select_rows(distinct_ids)
        inner_selection = self.inner.select(distinct_evidence, total_rows, distinct_scores)
        duplicates = len(priority_ids) - len(distinct_ids)
        stopped = inner_selection.stopped
        if stopped is None and duplicates:
            stopped = f"{duplicates} near-duplicates were left out; raise the threshold, or ask for fewer rows"
        selection_facts = {**inner_selection.facts, "near_duplicates": duplicates}
        return Selection(inner_selection.example_ids, selection_facts, inner_selection.trace, stopped)

    def distinct_rows(self, row_tokens: Sequence[Sequence[int]], row_indices: np.ndarray) -> np.ndarray:
        """Return the rows, in the given order, that are near no row before them.

        Args:
            row_tokens: [N] token ids of each row.
            row_indices: [n] int64 positions of the rows, those to keep first.
        """
        from datasketch import MinHash, MinHashLSH

        lookup_threshold = min(self.threshold, MAX_LOOKUP_THRESHOLD)
        lookup_index = MinHashLSH(threshold=lookup_threshold, num_perm=self.permutations)
        sketches: dict[int, MinHash] = {}
        for row_index in row_indices.tolist():
            sketch = MinHash(num_perm=self.permutations)
            sketch.update_batch(token_shingles(row_tokens[row_index], self.shingle))
            near_rows = lookup_index.query(sketch)
            if not any(sketches[row].jaccard(sketch) >= self.threshold for row in near_rows):
                lookup_index.insert(row_index, sketch)
                sketches[row_index] = sketch
        return np.asarray(list(sketches), dtype=np.int64)


def token_shingles(token_ids: Sequence[int], width: int) -> list[bytes]:
    """Return the different runs of `width` tokens, or the whole row where it is shorter."""
    tokens = np.asarray(token_ids, dtype=np.int32)
    starts = range(max(1, len(tokens) - width + 1))
    return sorted({tokens[start : start + width].tobytes() for start in starts})
