"""Diagnostics of the ensemble: do norms and their variance mean what the score assumes?"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from gradfiltering.diagnostics.failures import FailedDiagnostic
from gradfiltering.diagnostics.limits import DiagnosticLimits, Diagnostics
from gradfiltering.requests import EpochLog, GradientLogPair, SnapshotUnit
from gradfiltering.statistics.rank_correlation import spearman_correlation

TINY = np.finfo(float).tiny


def diagnose_ensemble(
    logs: GradientLogPair,
    early_epoch: int,
    late_epoch: int,
    update_ratios: Mapping[int, Sequence[float]],
    limits: DiagnosticLimits,
    unit: SnapshotUnit = "epoch",
) -> Diagnostics:
    """Measure drop, variance, growth, agreement and training loss of an ensemble.

    Args:
        logs: gradient log of the run at both snapshots.
        early_epoch: epoch of the early snapshot.
        late_epoch: epoch of the late snapshot.
        update_ratios: epoch -> ‖ΔW‖/‖W‖ of each member.
        limits: when to warn.
        unit: what snapshots are counted in.
    """
    early_norm = logs.early.grad_norm.astype(np.float64).mean(0)  # [M, N] -> [N]
    late_norm = logs.late.grad_norm.astype(np.float64).mean(0)
    relative_drop = (early_norm - late_norm) / np.maximum(early_norm, TINY)
    log_by_epoch = {str(early_epoch): logs.early, str(late_epoch): logs.late}
    values: dict[str, Any] = {
        "positive_drop_share": float((relative_drop > 0).mean()),
        "median_relative_drop": float(np.median(relative_drop)),
        "relative_variance": {epoch: _relative_variance(snapshot_log) for epoch, snapshot_log in log_by_epoch.items()},
        "update_ratio": {str(epoch): float(np.mean(member_ratios)) for epoch, member_ratios in update_ratios.items()},
        "member_agreement": _member_agreement(logs),
        "train_loss": {
            epoch: float(snapshot_log.loss.mean(dtype=np.float64)) for epoch, snapshot_log in log_by_epoch.items()
        },
    }
    return Diagnostics(values, _list_failures(values, early_epoch, late_epoch, limits, unit))


def _relative_variance(snapshot_log: EpochLog) -> float | None:
    norms = snapshot_log.grad_norm.astype(np.float64)  # [M, N]
    squared_mean = np.maximum(np.square(norms.mean(0)), TINY)
    return float(np.median(norms.var(0) / squared_mean)) if len(norms) > 1 else None


def _member_agreement(logs: GradientLogPair) -> float | None:
    """Mean Spearman, over pairs of members, of each member's own relative drops."""
    early_norms = logs.early.grad_norm.astype(np.float64)
    late_norms = logs.late.grad_norm.astype(np.float64)
    member_drops = (early_norms - late_norms) / np.maximum(early_norms, TINY)
    pair_correlations = [
        spearman_correlation(first_drops, second_drops) for first_drops, second_drops in combinations(member_drops, 2)
    ]
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
                "over. Train longer (a later pair of epochs), raise the learning rate or the initial "
                "spread of the adapters (init_b_std), or score by the inverse variance alone",
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
