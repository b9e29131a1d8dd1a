"""G-SNR lowered by disagreement in the gradient's direction."""

from typing import Any, ClassVar

import numpy as np

from gradfiltering.options import Probability, options
from gradfiltering.requests import Evidence, GradientLog, Projections, Request
from gradfiltering.scorers.base import Scores
from gradfiltering.scorers.gsnr import GSNR


@options
class DirectionGSNR(GSNR):
    r"""\(\mathrm{gsnr}_i - λ · |\mathrm{gsnr}_i| · (1 - c_i)/2\), with agreement c in direction. Ours.

    \(c_i = \mathrm{mean}_m \cos(p_i^{(m,t)}, \bar p^{(m,t)})\), where p is a member's projected
    gradient at the late snapshot and p̄ its mean over the data. The cosine is taken inside a member,
    since members' A bases differ. Rows that pull against the rest lose up to λ of their score's size,
    whichever sign it has: a product would bring a negative score nearer to 0, and so reward
    disagreement wherever the norm rose.

    Attributes:
        direction: λ in [0, 1]; 0 is `gsnr`.
    """

    direction: Probability = 0.5

    requests: ClassVar[frozenset[Request[Any]]] = frozenset({GradientLog(), Projections()})
    row_wise: ClassVar[bool] = False

    def score(self, evidence: Evidence) -> Scores:
        """Lower G-SNR by disagreement in direction; `cosine` stands beside it."""
        plain_scores = super().score(evidence)
        cosine = mean_cosines(evidence.get(Projections()))
        penalty = self.direction * np.abs(plain_scores.score) * (1 - cosine) / 2
        score_columns = {**plain_scores.columns, "cosine": cosine}
        return Scores(plain_scores.example_ids, plain_scores.score - penalty, score_columns)


def mean_cosines(projections: np.ndarray) -> np.ndarray:
    """Compute each row's cosine with its member's mean gradient, averaged over members.

    Args:
        projections: [M, N, K].

    Returns:
        [N] float64; a gradient of zero counts as cosine 0.
    """
    cosine_sums = np.zeros(projections.shape[1])
    for member_projections in projections:  # [N, K]
        mean_gradient = member_projections.mean(axis=0, dtype=np.float64)
        squares = np.einsum("nk,nk->n", member_projections, member_projections, dtype=np.float64)
        lengths = np.sqrt(squares) * np.linalg.norm(mean_gradient)
        products = member_projections @ mean_gradient
        no_cosine = np.zeros(len(products))
        cosine_sums += np.divide(products, lengths, out=no_cosine, where=lengths > 0)
    return cosine_sums / len(projections)
