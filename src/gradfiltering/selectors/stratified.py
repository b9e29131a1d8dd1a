"""The best rows of each stratum."""

from dataclasses import dataclass

import numpy as np
from scipy.cluster.vq import kmeans2

from gradfiltering.errors import UserError
from gradfiltering.evidence.base_model import Need
from gradfiltering.scorers.base import Evidence, Scores
from gradfiltering.scorers.length_controlled import length_bins
from gradfiltering.seeding import derive_seed
from gradfiltering.selectors.base import Budget, Selection, embeddings_of


@dataclass(frozen=True)
class StratifiedSelector(Budget):
    """Shares the budget out over strata and takes the highest scores of each, so that none is left out.

    Attributes:
        by: `source` (the rows' own column), `length` (bins of response tokens) or `cluster` (k-means on embeddings).
        strata: bins or clusters; sources are as many as there are.
        quota: `proportional` to the stratum's rows, or `equal` as far as the strata have rows.
    """

    by: str
    strata: int
    quota: str

    def __post_init__(self):
        super().__post_init__()
        for name, value, known in (
            ("by", self.by, ("source", "length", "cluster")), ("quota", self.quota, ("proportional", "equal"))
        ):  # fmt: skip
            if value not in known:
                raise UserError(f"selector.{name}={value}: give one of: {', '.join(known)}")
        if self.strata < 1:
            raise UserError(f"selector.strata={self.strata}: give a positive number")

    @property
    def needs(self) -> frozenset[Need]:
        """Scores, and embeddings where clusters are asked for."""
        return frozenset({"scores", "embeddings"} if self.by == "cluster" else {"scores"})

    def select(self, evidence: Evidence, total: int, scores: Scores | None) -> Selection:
        """The best rows of each stratum; `strata` tells how many rows each has and gave."""
        assert scores is not None, "the stratified selector declares the need scores"
        names, found = np.unique(self.stratum(evidence), return_inverse=True)
        place = found[np.searchsorted(evidence.example_ids, scores.example_ids)]  # [N] stratum of each scored row
        sizes = np.bincount(place, minlength=len(names))
        quotas = share_out(self.rows(total, len(place)), sizes, self.quota)
        order = scores.order
        chosen = [order[place[order] == one][:quota] for one, quota in enumerate(quotas)]
        about = {
            str(name): {"rows": int(size), "selected": int(quota)}
            for name, size, quota in zip(names, sizes, quotas, strict=True)
        }
        return Selection(sorted(scores.example_ids[np.concatenate(chosen)].tolist()), {"strata": about})

    def stratum(self, evidence: Evidence) -> np.ndarray:
        """[N] name or number of each row's stratum.

        Raises:
            UserError: rows have no source.
        """
        if self.by == "cluster":
            return clusters(embeddings_of(evidence), self.strata, evidence.seed)
        if self.by == "length":
            assert evidence.examples is not None, "a run knows its examples"
            return length_bins(evidence.examples.response_tokens, self.strata)
        if evidence.sources is None:
            raise UserError("selector.by=source: the rows have no column 'source'; give selector.by=length or cluster")
        return np.asarray(evidence.sources)[evidence.example_ids]


def share_out(budget: int, sizes: np.ndarray, how: str) -> np.ndarray:
    """How many rows each stratum gives, `budget` in all.

    Args:
        budget: at most the sum of the sizes.
        sizes: [S] rows of each stratum.
        how: `proportional` (largest remainders, the first among equals) or `equal` (what a small stratum cannot give
            is shared by the others; the first strata give what does not divide).
    """
    if how == "proportional":
        exact = budget * sizes / max(sizes.sum(), 1)
        quotas = np.floor(exact).astype(np.int64)
        quotas[np.argsort(quotas - exact, kind="stable")[: budget - quotas.sum()]] += 1
        return quotas
    quotas = np.zeros(len(sizes), dtype=np.int64)
    while quotas.sum() < budget:
        open_strata = np.flatnonzero(quotas < sizes)
        each, rest = divmod(budget - int(quotas.sum()), len(open_strata))
        if each:
            quotas[open_strata] = np.minimum(quotas[open_strata] + each, sizes[open_strata])
        else:
            quotas[open_strata[np.argsort(quotas[open_strata], kind="stable")[:rest]]] += 1
    return quotas


def clusters(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    """[N] cluster of each row by k-means, started by k-means++ from the run's seed; some clusters may stay empty."""
    rng = np.random.default_rng(derive_seed(seed, "clusters"))
    _, found = kmeans2(points.astype(np.float64), min(count, len(points)), minit="++", seed=rng, missing="warn")
    return found
