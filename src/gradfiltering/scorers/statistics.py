"""Statistics of the gradient log that the G-SNR family is made of (GradFiltering, arXiv 2601.13697, sec. 3)."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradfiltering.errors import UserError
from gradfiltering.evidence.base_model import Need
from gradfiltering.runs.gradient_log import EpochLog
from gradfiltering.scorers.base import Evidence, Scores


@dataclass(frozen=True)
class GradientStatistics:
    """Per-example statistics over members, in float64.

    Attributes:
        g_early: [N] G_s, mean over members of the gradient norm at the early epoch.
        g_late: [N] G_t, the same at the late epoch.
        variance_late: [N] V_t, variance over members at the late epoch; NaN for a single member.
    """

    g_early: np.ndarray
    g_late: np.ndarray
    variance_late: np.ndarray

    @property
    def drop(self) -> np.ndarray:
        """[N] G_s − G_t."""
        return self.g_early - self.g_late


def gradient_statistics(early: np.ndarray, late: np.ndarray, ddof: int) -> GradientStatistics:
    """Statistics from logged norms.

    Args:
        early: [M, N] norms at the early epoch.
        late: [M, N] norms at the late epoch.
        ddof: 0 for the population variance, 1 for the sample variance.
    """
    early, late = early.astype(np.float64), late.astype(np.float64)
    variance = late.var(axis=0, ddof=ddof) if len(late) > 1 else np.full(late.shape[1], np.nan)
    return GradientStatistics(early.mean(axis=0), late.mean(axis=0), variance)


def logged_pair(evidence: Evidence) -> tuple[EpochLog, EpochLog]:
    """The gradient log at the early and the late epoch.

    Raises:
        UserError: the log lacks an epoch, or is of other examples.
    """
    log = evidence.gradient_log
    assert log is not None, "a gradient scorer declares the need gradient_log"
    early, late = log.epoch(evidence.epochs.early), log.epoch(evidence.epochs.late)
    for one in (early, late):
        if not np.array_equal(one.example_ids, evidence.example_ids):
            raise UserError("the gradient log holds other examples than this run's; delete it and run again")
    return early, late


@dataclass(frozen=True)
class GradientScorer(ABC):
    """A score that is a function of G_s, G_t and V_t.

    Attributes:
        epsilon: added to denominators.
        ddof: of the variance.
    """

    epsilon: float
    ddof: int

    needs: ClassVar[frozenset[Need]] = frozenset({"gradient_log"})
    uses_variance: ClassVar[bool] = True

    def __post_init__(self):
        if self.epsilon <= 0:
            raise UserError(f"scorer.epsilon={self.epsilon}: give a small positive number")
        if self.ddof not in (0, 1):
            raise UserError(f"scorer.ddof={self.ddof}: give 0 (population variance) or 1 (sample variance)")

    @abstractmethod
    def formula(self, stats: GradientStatistics) -> np.ndarray:
        """[N] scores."""

    def check(self, members: int) -> None:
        """Refuses a single member where the members' variance is needed.

        Raises:
            UserError: names the option and the scorers that do without.
        """
        if self.uses_variance and members < 2:
            raise UserError(
                f"{type(self).__name__} needs the variance over members, and ensemble.m={members}; "
                "set ensemble.m=2 or more, or use scorer=raw_drop or scorer=normalized_drop"
            )

    def score(self, evidence: Evidence) -> Scores:
        """Scores the examples of the gradient log.

        Raises:
            UserError: a variance is needed and the log has one member.
        """
        early, late = logged_pair(evidence)
        self.check(len(late.grad_norm))
        stats = gradient_statistics(early.grad_norm, late.grad_norm, self.ddof)
        columns = {"g_early": stats.g_early, "g_late": stats.g_late, "variance_late": stats.variance_late}
        return Scores(late.example_ids, self.formula(stats), columns)
