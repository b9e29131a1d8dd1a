"""The best rows of each stratum."""

from typing import Any, ClassVar, Literal

import numpy as np

from gradfiltering.errors import UserError
from gradfiltering.options import PositiveInt, options
from gradfiltering.requests import Embeddings, Evidence, Request
from gradfiltering.scorers.base import Scores
from gradfiltering.scorers.length_controlled import bins_of_lengths, length_bins
from gradfiltering.selectors.base import Budget, Selection, Strata
from gradfiltering.statistics.clustering import assign_clusters


@options
class StratifiedSelector(Budget):
    """Share the budget out over strata and select the highest scores of each.

    Attributes:
        by: `source` (the rows' own column), `length` (bins of response tokens) or `cluster`
            (k-means on embeddings).
        strata: bins or clusters; sources are as many as there are.
        quota: `proportional` to the stratum's rows, or `equal` as far as the strata have rows.
    """

    by: Literal["source", "length", "cluster"] = "length"
    strata: PositiveInt = 10
    quota: Literal["proportional", "equal"] = "proportional"

    uses_scores: ClassVar[bool] = True

    @property
    def requests(self) -> frozenset[Request[Any]]:
        """Embeddings where strata are clusters."""
        return frozenset({Embeddings()} if self.by == "cluster" else ())

    def select(self, evidence: Evidence, total_rows: int, scores: Scores | None) -> Selection:
        """Select the best rows of each stratum; `strata` counts each one's rows and selected rows."""
        assert scores is not None, "the stratified selector uses scores"
        strata, row_strata = np.unique(self.stratum_of_rows(evidence), return_inverse=True)
        scored_rows = np.searchsorted(evidence.example_ids, scores.example_ids)
        scored_strata = row_strata[scored_rows]  # [N] stratum of each scored row
        sizes = np.bincount(scored_strata, minlength=len(strata))
        row_count = self.rows_to_select(total_rows, len(scored_strata))
        quotas = share_out(row_count, sizes, self.quota)
        ordered_strata = scored_strata[scores.order]
        selected_rows = [scores.order[ordered_strata == index][:quota] for index, quota in enumerate(quotas)]
        selected_ids = scores.example_ids[np.concatenate(selected_rows)]
        stratum_facts = {
            str(stratum): {"rows": int(size), "selected": int(quota)}
            for stratum, size, quota in zip(strata, sizes, quotas, strict=True)
        }
        return Selection(sorted(selected_ids.tolist()), {"strata": stratum_facts})

    def quota_strata(self) -> Strata | None:
        """Return the strata where they are groups of sources or lengths; None for clusters, which need all rows."""
        if self.by == "cluster":
            return None

        def group_values(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
            return values if self.by == "source" else bins_of_lengths(values, counts, self.strata)

        def share_budget(row_count: int, stratum_sizes: np.ndarray) -> np.ndarray:
            return share_out(row_count, stratum_sizes, self.quota)

        return Strata("source" if self.by == "source" else "response_tokens", group_values, share_budget)

    def stratum_of_rows(self, evidence: Evidence) -> np.ndarray:
        """[N] name or number of each row's stratum.

        Raises:
            UserError: rows name no source.
        """
        if self.by == "cluster":
            return assign_clusters(evidence.get(Embeddings()), self.strata, evidence.seed)
        if self.by == "length":
            return length_bins(evidence.response_tokens, self.strata)
        if evidence.sources is None:
            raise UserError(
                "the rows have no column 'source'; stratify by length or cluster",
                owner=self,
                arguments=("by",),
            )
        return evidence.sources


def share_out(budget_rows: int, stratum_sizes: np.ndarray, quota: str) -> np.ndarray:
    """Share a budget out over strata.

    Args:
        budget_rows: at most the sum of the sizes.
        stratum_sizes: [S] rows of each stratum.
        quota: `proportional` (largest remainders, the first among equals) or `equal` (the rows that
            a small stratum lacks are shared by the others; the first strata take the remainder).

    Returns:
        [S] rows to select from each stratum.
    """
    quotas: np.ndarray
    if quota == "proportional":
        exact_quotas = budget_rows * stratum_sizes / max(stratum_sizes.sum(), 1)
        quotas = np.floor(exact_quotas).astype(np.int64)
        by_remainder = np.argsort(quotas - exact_quotas, kind="stable")
        quotas[by_remainder[: budget_rows - quotas.sum()]] += 1
        return quotas
    quotas = np.zeros(len(stratum_sizes), dtype=np.int64)
    while quotas.sum() < budget_rows:
        open_strata = np.flatnonzero(quotas < stratum_sizes)
        equal_share, remainder = divmod(budget_rows - int(quotas.sum()), len(open_strata))
        if equal_share:
            raised_quotas = quotas[open_strata] + equal_share
            quotas[open_strata] = np.minimum(raised_quotas, stratum_sizes[open_strata])
        else:
            by_quota = np.argsort(quotas[open_strata], kind="stable")
            quotas[open_strata[by_quota[:remainder]]] += 1
    return quotas
