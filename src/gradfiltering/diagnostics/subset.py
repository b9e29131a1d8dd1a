"""Diagnostics of a subset: preferences of the score, coverage of sources, easiness of the rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradfiltering.diagnostics.failures import FailedDiagnostic
from gradfiltering.diagnostics.limits import DiagnosticLimits, Diagnostics
from gradfiltering.requests import Evidence, LossMeasurement
from gradfiltering.scorers.base import Scores
from gradfiltering.statistics.rank_correlation import spearman_correlation

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
    response_tokens = evidence.response_tokens.astype(np.float64)
    row_losses = None if base_losses is None else base_losses.row_losses
    is_selected = np.isin(evidence.example_ids, np.asarray(selected_ids))
    selected_tokens = response_tokens[is_selected]
    values: dict[str, Any] = {
        "response_tokens": {
            "pool": float(response_tokens.mean()),
            "selected": float(selected_tokens.mean()),
        }
    }
    failures: list[FailedDiagnostic] = []
    if scores is not None:
        is_scored = np.isin(evidence.example_ids, scores.example_ids)
        values["score_is_constant"] = len(scores.score) > 1 and len(np.unique(scores.score)) == 1
        score_meaning = meaning_below_zero(scores)
        if score_meaning is not None:
            selected_scores = scores.score[is_selected[is_scored]]
            values["negative_selected_share"] = float((selected_scores < 0).mean())
        scored_losses = None if row_losses is None else row_losses[is_scored]
        compared_columns = {
            "response_tokens": response_tokens[is_scored],
            "bare_loss": scored_losses,
            **scores.columns,
        }
        values["score_spearman"] = {
            name: spearman_correlation(scores.score, column)
            for name, column in compared_columns.items()
            if column is not None and np.isfinite(column).all()
        }
        failures += _list_score_failures(values, score_meaning, limits)
        failures += _check_norm_drop(scores)
    if row_losses is not None:
        easiness = float(row_losses[is_selected].mean() / row_losses.mean())
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


def meaning_below_zero(scores: Scores) -> str | None:
    """Return the meaning of a negative score and a remedy; None where the sign means nothing."""
    if any(name.startswith("influence_") for name in scores.columns):
        return MEANING_OF_NEGATIVE_INFLUENCE
    return next(
        (meaning for column_names, meaning in MEANING_BELOW_ZERO.items() if set(column_names) <= scores.columns.keys()),
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


def _check_norm_drop(scores: Scores) -> list[FailedDiagnostic]:
    """Fail a score that is a drop of norms where norms fell for almost no row.

    A score is one of the drop where it has the drop's sign in every row; ranks, and scores of the variance or of the
    late norm alone, have not.
    """
    if not {"g_early", "g_late"} <= scores.columns.keys():
        return []
    norm_drop = scores.columns["g_early"] - scores.columns["g_late"]
    base_score = scores.columns.get("base_score", scores.score)
    fallen_share = float((norm_drop > 0).mean())
    if fallen_share >= ALMOST_NO_ROW or not np.array_equal(np.sign(base_score), np.sign(norm_drop)):
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
    if len(sources) > MAX_SOURCES:
        return Diagnostics()
    selected_indices = source_indices[np.asarray(selected_ids, dtype=np.int64)]
    pool_counts = np.bincount(source_indices, minlength=len(sources))
    selected_counts = np.bincount(selected_indices, minlength=len(sources))
    pool_shares, selected_shares = (
        pool_counts / len(source_indices),
        selected_counts / len(selected_ids),
    )
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
