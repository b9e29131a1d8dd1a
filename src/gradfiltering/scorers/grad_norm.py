"""Mean gradient norm."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradfiltering.errors import UserError
from gradfiltering.evidence.base_model import Need
from gradfiltering.scorers.base import Evidence, Scorer, Scores
from gradfiltering.scorers.statistics import logged_pair


@dataclass(frozen=True)
class GradNorm(Scorer):
    r"""GraNd, \(\frac1M \sum_m g_i^{(m)}\) at one epoch (Paul et al., NeurIPS 2021, sec. 2), the largest first.

    Attributes:
        at: `early` or `late`, of the compared epochs. GraNd is meant for early training.
        prefer: `large`, or `small` for minus the norm: on a small proxy, noise has the large ones.
    """

    at: str
    prefer: str

    needs: ClassVar[frozenset[Need]] = frozenset({"gradient_log"})

    def __post_init__(self):
        if self.at not in ("early", "late"):
            raise UserError(f"scorer.at={self.at}: give early or late")
        if self.prefer not in ("large", "small"):
            raise UserError(f"scorer.prefer={self.prefer}: give large or small")

    def score(self, evidence: Evidence) -> Scores:
        """[N] mean norm over members, or minus it."""
        early, late = logged_pair(evidence)
        norms = (early if self.at == "early" else late).grad_norm.astype(np.float64).mean(axis=0)
        return Scores(evidence.example_ids, norms if self.prefer == "large" else -norms)
