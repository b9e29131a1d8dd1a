"""Several scores as one, by rank."""

from dataclasses import dataclass
from functools import reduce

import numpy as np
from scipy.stats import rankdata

from gradfiltering.errors import UserError
from gradfiltering.evidence.base_model import Need
from gradfiltering.scorers.base import Evidence, Scorer, Scores


@dataclass(frozen=True)
class RankFusion(Scorer):
    """Weighted mean of the ranks that several scorers give, each as a share of N (Borda's count).

    Ranks make scores of different units comparable. A negative weight prefers what its scorer puts last.

    Attributes:
        parts: scorers by name.
        weights: of the same names.
    """

    parts: dict[str, Scorer]
    weights: dict[str, float]

    def __post_init__(self):
        if set(self.parts) != set(self.weights) or not self.parts:
            raise UserError(
                f"scorer.parts names {sorted(self.parts)} and scorer.weights {sorted(self.weights)}; name the same"
            )
        if not any(self.weights.values()):
            raise UserError("scorer.weights are all 0; give at least one that is not")

    @property
    def needs(self) -> frozenset[Need]:  # type: ignore[override]
        """What any part looks at."""
        return frozenset().union(*(part.needs for part in self.parts.values()))

    def check(self, members: int) -> None:
        """Refuses what any part refuses."""
        for part in self.parts.values():
            part.check(members)

    def score(self, evidence: Evidence) -> Scores:
        """The rows that every part can score; their score under each part stands beside it."""
        found = {name: part.score(evidence) for name, part in self.parts.items()}
        ids = reduce(np.intersect1d, [one.example_ids for one in found.values()])
        if not len(ids):
            raise UserError(f"no row can be scored by all of {', '.join(found)}")
        reasons = {example_id: reason for one in found.values() for example_id, reason in one.unscored}
        total = sum(abs(weight) for weight in self.weights.values())
        fused = np.zeros(len(ids))
        columns = {}
        for name, one in found.items():
            columns[name] = one.among(ids).score
            fused += self.weights[name] / total * rankdata(columns[name]) / len(ids)
        return Scores(ids, fused, columns, sorted(reasons.items()))
