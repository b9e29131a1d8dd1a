"""Fall of the loss during training."""

from typing import Any, ClassVar

import numpy as np

from gradfiltering.options import options
from gradfiltering.requests import Evidence, GradientLog, Request
from gradfiltering.scorers.base import Scorer, Scores


@options
class Learnability(Scorer):
    r"""\(\frac1M \sum_m (L_i^{(m,s)} - L_i^{(m,t)})\), the fall of the members' loss on the row.

    The loss falls where a row can be learned; on noise it does not, nor on rows that the model knew
    before (after Mindermann et al., "Prioritized Training on Points that are Learnable", ICML 2022;
    and Zhou et al., "LoBaSS", arXiv 2310.13008, who score by the loss before and after training).
    """

    requests: ClassVar[frozenset[Request[Any]]] = frozenset({GradientLog()})
    row_wise: ClassVar[bool] = True

    def score(self, evidence: Evidence) -> Scores:
        """[N] nats per response token."""
        logs = evidence.get(GradientLog())
        early_loss = logs.early.loss.astype(np.float64).mean(axis=0)
        late_loss = logs.late.loss.astype(np.float64).mean(axis=0)
        score_columns = {"loss_early": early_loss, "loss_late": late_loss}
        return Scores(evidence.example_ids, early_loss - late_loss, score_columns)
