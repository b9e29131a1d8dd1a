"""Statistics of the gradient log that the G-SNR family uses (arXiv 2601.13697, sec. 3)."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from gradfiltering.errors import UserError
from gradfiltering.options import PositiveFloat, options
from gradfiltering.requests import Evidence, GradientLog, Request
from gradfiltering.scorers.base import Scorer, Scores


@dataclass(frozen=True)
class GradientStatistics:
    """Per-example statistics over members, in float64.

    Attributes:
        early_norm: [N] G_s, mean over members of the gradient norm at the early snapshot.
        late_norm: [N] G_t, the same at the late snapshot.
        late_variance: [N] V_t, variance over members at the late snapshot; NaN for one member.
    """

    early_norm: np.ndarray
    late_norm: np.ndarray
    late_variance: np.ndarray

    @property
    def norm_drop(self) -> np.ndarray:
        """[N] G_s − G_t."""
        norm_drop: np.ndarray = self.early_norm - self.late_norm
        return norm_drop


def gradient_statistics(early_norms: np.ndarray, late_norms: np.ndarray, ddof: int) -> GradientStatistics:
    """Compute G_s, G_t and V_t from logged norms.

    Args:
        early_norms: [M, N] norms at the early snapshot.
        late_norms: [M, N] norms at the late snapshot.
        ddof: 0 for the population variance, 1 for the sample variance.
    """
    early_norm, late_norm = (norms.mean(axis=0, dtype=np.float64) for norms in (early_norms, late_norms))
    if len(late_norms) == 1:
        late_variance = np.full(late_norms.shape[1], np.nan)
    else:
        late_variance = late_norms.var(axis=0, dtype=np.float64, ddof=ddof)
    return GradientStatistics(early_norm, late_norm, late_variance)


@options
class GradientScorer(Scorer, ABC):
    """A score that is a function of G_s, G_t and V_t.

    Attributes:
        epsilon: ε, added to denominators.
        ddof: of the variance, 0 (population) or 1 (sample).
    """

    epsilon: PositiveFloat = 1e-8
    ddof: Literal[0, 1] = 0

    requests: ClassVar[frozenset[Request[Any]]] = frozenset({GradientLog()})
    row_wise: ClassVar[bool] = True
    uses_variance: ClassVar[bool] = True

    @abstractmethod
    def formula(self, norm_statistics: GradientStatistics) -> np.ndarray:
        """[N] scores."""

    def score_norms(self, early_norms: np.ndarray, late_norms: np.ndarray) -> np.ndarray:
        """Score gradient norms: [M, N] at the early and [M, N] at the late snapshot -> [N]."""
        return self.formula(gradient_statistics(early_norms, late_norms, self.ddof))

    def check_members(self, member_count: int) -> None:
        """Refuse a single member where the variance over members is needed.

        Raises:
            UserError: names scorers that do without.
        """
        if self.uses_variance and member_count < 2:
            raise UserError(
                f"{type(self).__name__} needs the variance over members, and there is one; train two "
                "or more members, or use the scorer raw_drop or normalized_drop"
            )

    def score(self, evidence: Evidence) -> Scores:
        """Score the examples of the gradient log; G_s, G_t and V_t stand beside the score.

        Raises:
            UserError: a variance is needed and the log has one member.
        """
        logs = evidence.get(GradientLog())
        self.check_members(len(logs.late.grad_norm))
        norm_statistics = gradient_statistics(logs.early.grad_norm, logs.late.grad_norm, self.ddof)
        score_columns = {
            "g_early": norm_statistics.early_norm,
            "g_late": norm_statistics.late_norm,
            "variance_late": norm_statistics.late_variance,
        }
        return Scores(evidence.example_ids, self.formula(norm_statistics), score_columns)
