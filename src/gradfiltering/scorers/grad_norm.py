"""Mean gradient norm."""

from typing import Any, ClassVar, Literal

import numpy as np

from gradfiltering.options import options
from gradfiltering.requests import Evidence, GradientLog, Request
from gradfiltering.scorers.base import Scorer, Scores


@options
class GradNorm(Scorer):
    r"""GraNd, \(\frac1M \sum_m g_i^{(m)}\) at one snapshot (Paul et al., NeurIPS 2021, sec. 2).

    Attributes:
        at: `early` or `late`, of the compared snapshots. GraNd is meant for early training.
        prefer: `large`, or `small` for minus the norm: on a small proxy, noise has the large norms.
    """

    at: Literal["early", "late"] = "early"
    prefer: Literal["large", "small"] = "large"

    requests: ClassVar[frozenset[Request[Any]]] = frozenset({GradientLog()})
    row_wise: ClassVar[bool] = True

    def score(self, evidence: Evidence) -> Scores:
        """[N] mean norm over members, or minus the norm."""
        logs = evidence.get(GradientLog())
        snapshot_log = logs.early if self.at == "early" else logs.late
        mean_norm = snapshot_log.grad_norm.astype(np.float64).mean(axis=0)
        return Scores(evidence.example_ids, mean_norm if self.prefer == "large" else -mean_norm)
