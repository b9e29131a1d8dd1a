"""Diagnostics of the ensemble: do norms and their variance mean what the score assumes?"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from gradfiltering.diagnostics.failures import FailedDiagnostic
from gradfiltering.diagnostics.limits import DiagnosticLimits, Diagnostics
from gradfiltering.diagnostics.row_columns import RowColumns
from gradfiltering.requests import GradientLogPair, SnapshotUnit

TINY = np.finfo(float).tiny
MEMBER_DROP = "member_drop_"


def ensemble_columns(logs: GradientLogPair) -> dict[str, np.ndarray]:
    """Compute the numbers of each row that the diagnostics of an ensemble are statistics of.

    Returns:
        Name -> [N] float64: `relative_drop`, `loss_early` and `loss_late`; of several members `relative_variance_early`
        and `relative_variance_late` (V/G²), and each member's own relative drop, `member_drop_0` and so on.
    """
    early_norms, late_norms = logs.early.grad_norm, logs.late.grad_norm  # [M, N]
    early_norm, late_norm = (norms.mean(0, dtype=np.float64) for norms in (early_norms, late_norms))  # [M, N] -> [N]
    columns = {
        "relative_drop": (early_norm - late_norm) / np.maximum(early_norm, TINY),
        "loss_early": logs.early.loss.mean(0, dtype=np.float64),
        "loss_late": logs.late.loss.mean(0, dtype=np.float64),
    }
    if len(early_norms) > 1:
        for moment, norms, norm in (("early", early_norms, early_norm), ("late", late_norms, late_norm)):
            variance = norms.var(0, dtype=np.float64)
            columns[f"relative_variance_{moment}"] = variance / np.maximum(np.square(norm), TINY)
        for member_index in range(len(early_norms)):
            member_early = early_norms[member_index].astype(np.float64)
            drop = member_early - late_norms[member_index]
            columns[f"{MEMBER_DROP}{member_index}"] = drop / np.maximum(member_early, TINY)
    return columns


def diagnose_ensemble(
    columns: RowColumns,
    early_epoch: int,
    late_epoch: int,
    update_ratios: Mapping[int, Sequence[float]],
    limits: DiagnosticLimits,
    unit: SnapshotUnit = "epoch",
) -> Diagnostics:
    """Measure drop, variance, growth, agreement and training loss of an ensemble.

    Args:
        columns: of `ensemble_columns`, in memory or on disk.
        early_epoch: epoch of the early snapshot.
        late_epoch: epoch of the late snapshot.
        update_ratios: epoch -> ‖ΔW‖/‖W‖ of each member.
        limits: when to warn.
        unit: what snapshots are counted in.
    """
    epoch_columns = {str(early_epoch): "early", str(late_epoch): "late"}
    has_variance = "relative_variance_late" in columns.names
    values: dict[str, Any] = {
        "positive_drop_share": columns.share_above_zero("relative_drop"),
        "median_relative_drop": columns.median("relative_drop"),
        "relative_variance": {
            epoch: columns.median(f"relative_variance_{moment}") if has_variance else None
            for epoch, moment in epoch_columns.items()
        },
        "update_ratio": {str(epoch): float(np.mean(member_ratios)) for epoch, member_ratios in update_ratios.items()},
        "member_agreement": _member_agreement(columns),
        "train_loss": {epoch: columns.mean(f"loss_{moment}") for epoch, moment in epoch_columns.items()},
    }
    return Diagnostics(values, _list_failures(values, early_epoch, late_epoch, limits, unit))


def _member_agreement(columns: RowColumns) -> float | None:
    """Mean Spearman, over pairs of members, of each member's own relative drops."""
    member_columns = [column_name for column_name in columns.names if column_name.startswith(MEMBER_DROP)]
    pair_correlations = columns.correlate_ranks(list(combinations(member_columns, 2)))
    known_correlations = [value for value in pair_correlations if value is not None]
    return float(np.mean(known_correlations)) if known_correlations else None


def _list_failures(
    values: dict[str, Any], early_epoch: int, late_epoch: int, limits: DiagnosticLimits, unit: SnapshotUnit
) -> list[FailedDiagnostic]:
    failures = []
    drop_share, median_drop = values["positive_drop_share"], values["median_relative_drop"]
    if drop_share < limits.positive_drop_share or median_drop < limits.median_relative_drop:
        failures.append(
            FailedDiagnostic(
                "norm_drop",
                f"gradient norms fell from {unit} {early_epoch} to {late_epoch} for {drop_share:.0%} of "
                f"examples (limit {limits.positive_drop_share:.0%}), median relative drop "
                f"{median_drop:+.3f}: with negative drops, dividing by a small variance turns the order "
                "over. Choose other snapshots (a later pair of epochs; where an epoch has more than about 40 "
                "updates, an earlier pair, counted in updates), raise the learning rate or the initial spread of the "
                "adapters (init_b_std), or score by the inverse variance alone",
            )
        )
    late_variance = values["relative_variance"][str(late_epoch)]
    if late_variance is not None and late_variance < limits.relative_variance:
        failures.append(
            FailedDiagnostic(
                "member_disagreement",
                f"the members hardly disagree: V/G² is {late_variance:.4f} at {unit} {late_epoch} (limit "
                f"{limits.relative_variance}). Raise the learning rate, the number of members or the "
                "initial spread of the adapters (init_b_std)",
            )
        )
    largest_ratio = max(values["update_ratio"].values(), default=0.0)
    if largest_ratio > limits.update_ratio:
        failures.append(
            FailedDiagnostic(
                "adapter_growth",
                f"the adapters have grown to {largest_ratio:.2f} of the frozen weights (limit "
                f"{limits.update_ratio}); lower the learning rate or set a weight decay",
            )
        )
    agreement = values["member_agreement"]
    if agreement is not None and agreement < limits.member_agreement:
        failures.append(
            FailedDiagnostic(
                "member_agreement",
                f"the members' rankings agree at Spearman {agreement:.2f} only (limit "
                f"{limits.member_agreement}); train more members, or train longer",
            )
        )
    return failures
