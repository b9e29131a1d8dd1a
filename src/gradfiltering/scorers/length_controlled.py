"""Any score, compared among rows of like length only."""

from typing import Any, ClassVar

import numpy as np
from scipy.stats import rankdata

from gradfiltering.options import PositiveInt, options
from gradfiltering.requests import Evidence, Request
from gradfiltering.scorers.base import Scorer, Scores
from gradfiltering.scorers.gsnr import GSNR


@options
class LengthControlled(Scorer):
    """Rank of a row's score among the rows of its length bin, as a share of the bin. Ours.

    A mean over n response tokens has a norm that falls with n, so scores of gradients follow length
    even where length says nothing of quality (docs/findings.md). Within a bin of like lengths it
    cannot matter; the top share of all rows then is the top share of every bin.

    Attributes:
        base: the scorer.
        bins: length bins, of as equal size as ties allow.
    """

    base: Scorer = GSNR()
    bins: PositiveInt = 10

    row_wise: ClassVar[bool] = False

    @property
    def requests(self) -> frozenset[Request[Any]]:
        """Measurements that the base scorer reads."""
        return self.base.requests

    def check_members(self, member_count: int) -> None:
        """Refuse what the base scorer refuses."""
        self.base.check_members(member_count)

    def score(self, evidence: Evidence) -> Scores:
        """[N] in (0, 1]; `base_score` and `length_bin` stand beside it."""
        base_scores = self.base.score(evidence)
        row_indices = np.searchsorted(evidence.example_ids, base_scores.example_ids)
        row_bins = length_bins(evidence.response_tokens[row_indices], self.bins)
        score = np.empty(len(base_scores.score))
        for length_bin in np.unique(row_bins):
            inside = row_bins == length_bin
            score[inside] = rankdata(base_scores.score[inside]) / inside.sum()
        score_columns = {
            **base_scores.columns,
            "base_score": base_scores.score,
            "length_bin": row_bins.astype(np.float64),
        }
        return Scores(base_scores.example_ids, score, score_columns, base_scores.unscored)


def length_bins(lengths: np.ndarray, bin_count: int) -> np.ndarray:
    """[N] number of each row's bin; equal lengths share a bin."""
    bin_edges = np.quantile(lengths, np.arange(1, bin_count) / bin_count)
    return np.searchsorted(bin_edges, lengths, side="left")


def bins_of_lengths(lengths: np.ndarray, row_counts: np.ndarray, bin_count: int) -> np.ndarray:
    """Compute the bins of `length_bins` from how many rows have each length.

    Args:
        lengths: [L] different lengths, ascending.
        row_counts: [L] rows of each length.
        bin_count: number of bins.

    Returns:
        [L] number of each length's bin.
    """
    last_positions = np.cumsum(row_counts)
    edge_positions = np.arange(1, bin_count) / bin_count * (last_positions[-1] - 1)
    lower_positions = np.floor(edge_positions).astype(np.int64)
    upper_positions = np.minimum(lower_positions + 1, last_positions[-1] - 1)
    lower_lengths, upper_lengths = (
        lengths[np.searchsorted(last_positions, positions, side="right")].astype(np.float64)
        for positions in (lower_positions, upper_positions)
    )
    bin_edges = lower_lengths + (edge_positions - lower_positions) * (upper_lengths - lower_lengths)
    return np.searchsorted(bin_edges, lengths, side="left")
