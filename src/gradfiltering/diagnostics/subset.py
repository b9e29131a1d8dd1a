"""Diagnostics of a subset: preferences of the score, coverage of sources, easiness of the rows."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradfiltering.diagnostics.failures import FailedDiagnostic
from gradfiltering.diagnostics.limits import DiagnosticLimits, Diagnostics
from gradfiltering.diagnostics.row_columns import ArrayColumns, RowColumns
from gradfiltering.requests import Evidence, LossMeasurement
from gradfiltering.scorers.base import Scores

MAX_SOURCES = 100
ALMOST_NO_ROW = 0.1  # least share of rows whose norm falls, for a score that is a drop of norms
# Meaning of a score below 0, by the statistics that its scorer leaves beside it. Where none of them
# fit, 0 separates nothing (a rank, a length, a distance to the middle) and the sign is not reported.
MEANING_BELOW_ZERO = {
    ("g_early", "g_late"): "their norms rose. Select fewer rows or choose a later pair of epochs",
    ("loss_early", "loss_late"): ("the members' loss on them rose. Select fewer rows or choose a later pair of epochs"),
    ("ifd", "loss_alone"): "their IFD is not below the scorer's keep_below. Select fewer rows",
}
MEANING_OF_NEGATIVE_INFLUENCE = "their updates point away from the validation rows of every task. Select fewer rows"


def diagnose_selection(
    evidence: Evidence,
    selected_ids: Sequence[int],
    scores: Scores | None,
    base_losses: LossMeasurement | None,
    limits: DiagnosticLimits,
) -> Diagnostics:
    """Compare the selected rows with the pool in length, score and loss.

    Args:
        evidence: about the N rows that can be scored; only ids and lengths are read.
        selected_ids: example ids of the subset.
        scores: of these rows, or of most of them; None for a selector that needs none.
        base_losses: losses under the base model without adapters, where they were measured.
        limits: when to warn.
    """
    pool_columns = {"response_tokens": evidence.response_tokens.astype(np.float64)}
    if base_losses is not None:
        pool_columns["base_loss"] = base_losses.row_losses
    is_selected = np.isin(evidence.example_ids, np.asarray(selected_ids))
    selected_columns = {name: column[is_selected] for name, column in pool_columns.items()}
    if scores is None:
        return diagnose_selected_columns(ArrayColumns(pool_columns), ArrayColumns(selected_columns), None, limits)
    is_scored = np.isin(evidence.example_ids, scores.example_ids)
    scored_columns = {**{name: column[is_scored] for name, column in pool_columns.items()}, **score_columns(scores)}
    selected_columns["score"] = scores.score[is_selected[is_scored]]
    scored_rows = ScoredColumns(ArrayColumns(scored_columns), tuple(scores.columns))
    return diagnose_selected_columns(ArrayColumns(pool_columns), ArrayColumns(selected_columns), scored_rows, limits)


@dataclass(frozen=True)
class ScoredColumns:
    """The rows that have a score.

    Attributes:
        columns: `response_tokens`, `base_loss` where it was measured, and those of `score_columns`.
        statistic_names: of the statistics that the scorer left beside the score.
    """

    columns: RowColumns
    statistic_names: tuple[str, ...]


def score_columns(scores: Scores) -> dict[str, np.ndarray]:
    """Compute the numbers of each scored row that the diagnostics of a selection are statistics of.

    Returns:
        Name -> [N] float64: `score`, the scorer's statistics and, where it has the norms of both snapshots, `norm_drop`
        and `differs_from_drop`: 1 where the score has not the drop's sign.
    """
    columns = {"score": scores.score, **scores.columns}
    if {"g_early", "g_late"} <= scores.columns.keys():
        columns["norm_drop"] = scores.columns["g_early"] - scores.columns["g_late"]
        base_score = scores.columns.get("base_score", scores.score)
        columns["differs_from_drop"] = (np.sign(base_score) != np.sign(columns["norm_drop"])).astype(np.float64)
    return columns


def diagnose_selected_columns(
    pool: RowColumns, selected: RowColumns, scored_rows: ScoredColumns | None, limits: DiagnosticLimits
) -> Diagnostics:
    """Measure what `diagnose_selection` does, from columns that may lie on disk.

    Args:
        pool: `response_tokens` of the rows that can be scored, and `base_loss` where it was measured.
        selected: the same of the selected rows, and their `score`, of those that have one.
        scored_rows: the rows that have a score, None where nothing was scored.
        limits: when to warn.
    """
    values: dict[str, Any] = {
        "response_tokens": {"pool": pool.mean("response_tokens"), "selected": selected.mean("response_tokens")}
    }
    failures: list[FailedDiagnostic] = []
    if scored_rows is not None:
        scored = scored_rows.columns
        values["score_is_constant"] = scored.row_count > 1 and scored.is_constant("score")
        score_meaning = meaning_below_zero(scored_rows.statistic_names)
        if score_meaning is not None:
            values["negative_selected_share"] = selected.share_below_zero("score")
        compared_names = [
            name
            for name in ("response_tokens", "base_loss", *scored_rows.statistic_names)
            if name in scored.names and scored.is_finite(name)
        ]
        correlations = scored.correlate_ranks([("score", name) for name in compared_names])
        values["score_spearman"] = dict(zip(compared_names, correlations, strict=True))
        failures += _list_score_failures(values, score_meaning, limits)
        failures += _check_norm_drop(scored)
    if "base_loss" in pool.names:
        easiness = selected.mean("base_loss") / pool.mean("base_loss")
        values["easiness"] = easiness
        if easiness < limits.easiness:
            failures.append(
                FailedDiagnostic(
                    "easiness",
                    f"the chosen rows are trivially easy: their loss under the base model is "
                    f"{easiness:.2f} of the pool's (limit {limits.easiness}); select more rows, or "
                    "compare with random scores",
                )
            )
    return Diagnostics(values, failures)


def meaning_below_zero(statistic_names: Collection[str]) -> str | None:
    """Return the meaning of a negative score and a remedy; None where the sign means nothing.

    Args:
        statistic_names: of the statistics that the scorer left beside the score.
    """
    if any(name.startswith("influence_") for name in statistic_names):
        return MEANING_OF_NEGATIVE_INFLUENCE
    return next(
        (meaning for column_names, meaning in MEANING_BELOW_ZERO.items() if set(column_names) <= set(statistic_names)),
        None,
    )


def _list_score_failures(
    values: dict[str, Any], score_meaning: str | None, limits: DiagnosticLimits
) -> list[FailedDiagnostic]:
    failures = []
    if values["score_is_constant"]:
        failures.append(
            FailedDiagnostic(
                "scores_differ",
                "every row has the same score, so that the subset is a matter of row numbers; look for an option that "
                "is so large or small that nothing else counts, or take another scorer",
            )
        )
    negative_share = values.get("negative_selected_share", 0.0)
    if negative_share > limits.negative_selected_share:
        failures.append(
            FailedDiagnostic(
                "negative_scores",
                f"{negative_share:.0%} of the chosen rows have a negative score (limit "
                f"{limits.negative_selected_share:.0%}): {score_meaning}",
            )
        )
    length_correlation = values["score_spearman"]["response_tokens"]
    if length_correlation is not None and abs(length_correlation) > limits.length_correlation:
        failures.append(
            FailedDiagnostic(
                "length_correlation",
                f"the score follows response length (Spearman {length_correlation:+.2f}, limit "
                f"±{limits.length_correlation}); compare with another scorer before trusting the subset",
            )
        )
    return failures


def _check_norm_drop(scored: RowColumns) -> list[FailedDiagnostic]:
    """Fail a score that is a drop of norms where norms fell for almost no row.

    A score is one of the drop where it has the drop's sign in every row; ranks, and scores of the variance or of the
    late norm alone, have not.
    """
    if "norm_drop" not in scored.names:
        return []
    fallen_share = scored.share_above_zero("norm_drop")
    if fallen_share >= ALMOST_NO_ROW or scored.share_above_zero("differs_from_drop") > 0:
        return []
    return [
        FailedDiagnostic(
            "norms_fell",
            f"the score is a drop of gradient norms, and these fell for {fallen_share:.0%} of the rows (limit "
            f"{ALMOST_NO_ROW:.0%}), so that its order means nothing; train longer, raise the initial spread of the "
            "adapters (init_b_std), or take a score that needs no drop",
        )
    ]


def diagnose_sources(
    row_sources: Sequence[str] | None, selected_ids: Sequence[int], limits: DiagnosticLimits
) -> Diagnostics:
    """Compare the spread of the subset over sources with the pool's.

    Gives `sources.share` of each source in the pool and in the subset, and `sources.effective`: exp
    of the entropy of the subset's shares, as a share of the pool's. 1 means that the subset is
    spread like the pool, 1/k that it is as narrow as one of k even sources.

    Args:
        row_sources: source of every row of the dataset, None where rows name none; nothing is
            reported for more than `MAX_SOURCES` different ones, which are ids rather than sources.
        selected_ids: example ids of the subset.
        limits: when to warn.
    """
    if row_sources is None:
        return Diagnostics()
    sources, source_indices = np.unique(np.asarray(row_sources), return_inverse=True)
    selected_indices = source_indices[np.asarray(selected_ids, dtype=np.int64)]
    pool_counts = np.bincount(source_indices, minlength=len(sources))
    selected_counts = np.bincount(selected_indices, minlength=len(sources))
    return diagnose_source_counts(sources, pool_counts, selected_counts, limits)


def diagnose_source_counts(
    sources: Sequence[str] | np.ndarray, pool_counts: np.ndarray, selected_counts: np.ndarray, limits: DiagnosticLimits
) -> Diagnostics:
    """Compare the spread of the subset over sources with the pool's, as `diagnose_sources` does.

    Args:
        sources: [S] names.
        pool_counts: [S] rows of each source.
        selected_counts: [S] selected rows of each source.
        limits: when to warn.
    """
    if len(sources) > MAX_SOURCES:
        return Diagnostics()
    pool_shares, selected_shares = pool_counts / pool_counts.sum(), selected_counts / selected_counts.sum()
    source_shares = {
        str(source): {"pool": float(pool_share), "selected": float(selected_share)}
        for source, pool_share, selected_share in zip(sources, pool_shares, selected_shares, strict=True)
    }
    effective_share = _effective_count(selected_shares) / _effective_count(pool_shares)
    failures = []
    if effective_share < limits.source_spread:
        failures.append(
            FailedDiagnostic(
                "source_spread",
                f"the subset is narrow: its rows are spread over {effective_share:.0%} as many sources "
                f"as the pool's (limit {limits.source_spread:.0%}); select more rows, or compare with "
                "random scores",
            )
        )
    return Diagnostics({"sources": {"share": source_shares, "effective": effective_share}}, failures)


def _effective_count(shares: np.ndarray) -> float:
    """Exp of the entropy of shares that sum to 1."""
    positive_shares = shares[shares > 0]
    return float(np.exp(-(positive_shares * np.log(positive_shares)).sum()))
