"""Fall of the loss during training."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradfiltering.evidence.base_model import Need
from gradfiltering.scorers.base import Evidence, Scorer, Scores
from gradfiltering.scorers.statistics import logged_pair


@dataclass(frozen=True)
class Learnability(Scorer):
    r"""\(\frac1M \sum_m (L_i^{(m,s)} - L_i^{(m,t)})\), how far the members' loss on the row falls between the epochs.

    What can be learned falls; noise does not, and what was known already has nowhere to fall (after Mindermann et al.,
    "Prioritized Training on Points that are Learnable", ICML 2022; and Zhou et al., "LoBaSS", arXiv 2310.13008, which
    score by the loss before and after training).
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"gradient_log"})

    def score(self, evidence: Evidence) -> Scores:
        """[N] nats per response token."""
        before, after = (one.loss.astype(np.float64).mean(axis=0) for one in logged_pair(evidence))
        return Scores(evidence.example_ids, before - after, {"loss_early": before, "loss_late": after})
