"""Near-duplicates out before anything is chosen."""

from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from gradfiltering.data.examples import Examples
from gradfiltering.errors import UserError
from gradfiltering.evidence.base_model import Need
from gradfiltering.scorers.base import Evidence, Scores
from gradfiltering.selectors.base import Budget, Selection, Selector, inner_budget

FEWEST_PERMUTATIONS = 64  # with fewer, similarity is not estimated but guessed
SEARCHED = 0.9  # rows estimated to be this near are looked up, whatever the threshold above; banding ends there


@dataclass(frozen=True)
class DeduplicatedSelector(Budget):
    """`inner` chooses among rows of which no two are near-duplicates.

    Rows count as such when the estimated Jaccard similarity of their shingles of token ids reaches a threshold (MinHash
    with banding, Broder 1997; Lee et al., ACL 2022). Of each pair the row of higher score stays, or the earlier one
    where nothing is scored.

    Attributes:
        inner: chooses; it has the same budget as the whole.
        threshold: similarity in (0, 1].
        permutations: hash functions; more estimate better.
        shingle: tokens of a shingle.
    """

    inner: Selector
    threshold: float
    permutations: int
    shingle: int

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.threshold <= 1:
            raise UserError(f"selector.threshold={self.threshold}: give a similarity in (0, 1]")
        if self.permutations < FEWEST_PERMUTATIONS or self.shingle < 1:
            raise UserError(
                f"selector.permutations={self.permutations}, selector.shingle={self.shingle}: give "
                f"{FEWEST_PERMUTATIONS} and 1 or more"
            )
        if find_spec("datasketch") is None:
            raise UserError("selector=deduplicated needs datasketch; install it with pip install gradfiltering[dedup]")

    @property
    def needs(self) -> frozenset[Need]:
        """What the inner selector looks at."""
        return self.inner.needs

    def wanted(self, total: int) -> int:
        """The budget.

        Raises:
            UserError: the inner selector has another.
        """
        return inner_budget("inner", self.inner, super().wanted(total), total)

    def select(self, evidence: Evidence, total: int, scores: Scores | None) -> Selection:
        """The inner choice among the rows that stay; `near_duplicates` counts the others."""
        assert evidence.examples is not None, "a run knows its examples"
        order = evidence.example_ids if scores is None else scores.example_ids[scores.order]
        kept = self.distinct(evidence.examples, order)
        among = None if scores is None else scores.among(kept)
        choice = self.inner.select(evidence.among(kept), total, among)
        left = len(order) - len(kept)
        why = choice.stopped or f"{left} near-duplicates were left out; raise selector.threshold, or ask for fewer rows"
        return Selection(choice.example_ids, {**choice.about, "near_duplicates": left}, choice.trace, why)

    def distinct(self, examples: Examples, order: np.ndarray) -> np.ndarray:
        """The ids, in the given order, of rows that are near no row before them."""
        from datasketch import MinHash, MinHashLSH

        index = MinHashLSH(threshold=min(self.threshold, SEARCHED), num_perm=self.permutations)
        sketches: dict[int, MinHash] = {}
        places = np.searchsorted(examples.example_ids, order)
        for example_id, place in zip(order.tolist(), places.tolist(), strict=True):
            sketch = MinHash(num_perm=self.permutations)
            sketch.update_batch(shingles(examples.table[place]["input_ids"], self.shingle))
            near = (sketches[one].jaccard(sketch) for one in index.query(sketch))
            if not any(similarity >= self.threshold for similarity in near):
                index.insert(example_id, sketch)
                sketches[example_id] = sketch
        return np.asarray(list(sketches), dtype=np.int64)


def shingles(ids: list[int], width: int) -> list[bytes]:
    """The different runs of `width` tokens, the whole where it is shorter."""
    tokens = np.asarray(ids, dtype=np.int32)
    return sorted({tokens[at : at + width].tobytes() for at in range(max(1, len(tokens) - width + 1))})
