"""G-SNR that asks where a gradient points."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradfiltering.errors import UserError
from gradfiltering.evidence.base_model import Need
from gradfiltering.scorers.base import Evidence, Scores
from gradfiltering.scorers.gsnr import GSNR


@dataclass(frozen=True)
class DirectionGSNR(GSNR):
    r"""\(\mathrm{gsnr}_i · (1 - λ + λ (1 + c_i)/2)\), \(c_i = \frac1M \sum_m \cos(p_i^{(m,t)}, \bar p^{(m,t)})\). Ours.

    p is a member's projected gradient at the late epoch and p̄ its mean over the data. The cosine is taken inside a
    member, since members' A bases differ. Rows that pull against the rest lose up to λ of their score.

    Attributes:
        direction: λ in [0, 1]; 0 is `gsnr`.
    """

    direction: float

    needs: ClassVar[frozenset[Need]] = frozenset({"gradient_log", "projections"})

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.direction <= 1:
            raise UserError(f"scorer.direction={self.direction}: give a weight in [0, 1]")

    def score(self, evidence: Evidence) -> Scores:
        """G-SNR, weighted by agreement in direction; `cosine` stands beside it."""
        plain = super().score(evidence)
        cosine = mean_cosines(evidence.member_projections())
        weight = 1 - self.direction + self.direction * (1 + cosine) / 2
        return Scores(plain.example_ids, plain.score * weight, {**plain.columns, "cosine": cosine})


def mean_cosines(projections: np.ndarray) -> np.ndarray:
    """Cosine of each row with its member's mean, averaged over members; 0 where a gradient is zero.

    Args:
        projections: [M, N, K].

    Returns:
        [N] float64.
    """
    found = np.zeros(projections.shape[1])
    for member in projections:
        mean = member.mean(axis=0, dtype=np.float64)
        length = np.sqrt(np.einsum("nk,nk->n", member, member, dtype=np.float64)) * np.linalg.norm(mean)
        product = member @ mean
        found += np.divide(product, length, out=np.zeros(len(product)), where=length > 0)
    return found / len(projections)
