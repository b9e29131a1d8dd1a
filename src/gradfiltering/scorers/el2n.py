"""Error norm of the predicted distribution."""

from dataclasses import dataclass
from typing import ClassVar

from gradfiltering.evidence.base_model import Need
from gradfiltering.scorers.base import Evidence, Scorer, Scores


@dataclass(frozen=True)
class EL2N(Scorer):
    r"""\(\frac1T \sum_t ‖p_t - \mathrm{onehot}(y_t)‖_2\) over the response tokens, under the bare backbone.

    Paul et al. ("Deep Learning on a Data Diet", NeurIPS 2021, sec. 2) average over early checkpoints of a classifier; a
    pretrained backbone is already past its beginning, so it is taken as it is.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"el2n"})

    def score(self, evidence: Evidence) -> Scores:
        """[N] mean error norms, in [0, √2]."""
        found = evidence.observed.el2n
        assert found is not None, "EL2N declares its need"
        return Scores(evidence.example_ids, found)
