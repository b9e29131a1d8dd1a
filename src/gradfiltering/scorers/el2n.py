"""Error norm of the predicted distribution."""

from typing import Any, ClassVar

from gradfiltering.options import options
from gradfiltering.requests import ErrorNorms, Evidence, Request
from gradfiltering.scorers.base import Scorer, Scores


@options
class EL2N(Scorer):
    r"""\(\frac1T \sum_t ‖p_t - \mathrm{onehot}(y_t)‖_2\) over response tokens, by the base model.

    Paul et al. ("Deep Learning on a Data Diet", NeurIPS 2021, sec. 2) average over early
    checkpoints of a classifier; a pretrained base model is past its beginning, so it is taken as
    it is.
    """

    requests: ClassVar[frozenset[Request[Any]]] = frozenset({ErrorNorms()})
    row_wise: ClassVar[bool] = True

    def score(self, evidence: Evidence) -> Scores:
        """[N] mean error norms, in [0, √2]."""
        return Scores(evidence.example_ids, evidence.get(ErrorNorms()))
