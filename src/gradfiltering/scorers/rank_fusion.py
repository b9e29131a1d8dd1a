"""Several scores fused by rank."""

from functools import reduce
from typing import Any, ClassVar

import numpy as np
from scipy.stats import rankdata

from gradfiltering.errors import UserError
from gradfiltering.options import model_validator, options
from gradfiltering.requests import Evidence, Request
from gradfiltering.scorers.base import Scorer, Scores


@options
class RankFusion(Scorer):
    """Weighted mean of the ranks that several scorers give, each as a share of N (Borda's count).

    Ranks make scores of different units comparable. A negative weight prefers what its scorer puts
    last.

    Attributes:
        parts: scorers by name.
        weights: of the same names.
    """

    parts: dict[str, Scorer]
    weights: dict[str, float]

    row_wise: ClassVar[bool] = False

    @model_validator(mode="after")
    def _check_weights(self) -> "RankFusion":
        if set(self.parts) != set(self.weights) or not self.parts:
            raise UserError(
                f"there are parts {sorted(self.parts)} and weights of {sorted(self.weights)}; name the same",
                arguments=("parts", "weights"),
            )
        if not any(self.weights.values()):
            raise UserError("all weights are 0", arguments=("weights",))
        return self

    @property
    def requests(self) -> frozenset[Request[Any]]:
        """Measurements that any part reads."""
        return frozenset().union(*(part.requests for part in self.parts.values()))

    def check_members(self, member_count: int) -> None:
        """Refuse what any part refuses."""
        for part in self.parts.values():
            part.check_members(member_count)

    def score(self, evidence: Evidence) -> Scores:
        """Score the rows that every part can score; the parts' scores stand beside the fusion.

        Raises:
            UserError: there is no such row.
        """
        part_scores = {name: part.score(evidence) for name, part in self.parts.items()}
        shared_ids = reduce(np.intersect1d, [part.example_ids for part in part_scores.values()])
        if not len(shared_ids):
            raise UserError(f"no row can be scored by all of {', '.join(part_scores)}")
        reasons = dict(entry for scores in part_scores.values() for entry in scores.unscored)
        weight_sum = sum(abs(weight) for weight in self.weights.values())
        fused_score = np.zeros(len(shared_ids))
        score_columns = {}
        for name, scores in part_scores.items():
            score_columns[name] = scores.select_rows(shared_ids).score
            rank_shares = rankdata(score_columns[name]) / len(shared_ids)
            fused_score += self.weights[name] / weight_sum * rank_shares
        return Scores(shared_ids, fused_score, score_columns, sorted(reasons.items()))
