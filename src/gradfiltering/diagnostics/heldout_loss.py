"""Diagnostics of the held-out loss: does the proxy learn anything that holds beyond the rows it was trained on?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gradfiltering.diagnostics.failures import FailedDiagnostic
from gradfiltering.diagnostics.limits import Diagnostics
from gradfiltering.requests import SnapshotUnit

TOLERATED_RISE = 0.005  # of the early snapshot's loss


@dataclass(frozen=True)
class HeldoutLosses:
    """Mean losses of rows that were not trained on, nats per response token.

    Attributes:
        base_loss: under the base model without adapters.
        losses: epoch -> after it.
        rows: their number.
        origin: `dataset` for rows that it sets aside, which all members are measured on; `extra_member` for rows that a
            member on a split of its own never saw.
    """

    base_loss: float
    losses: Mapping[int, float]
    rows: int
    origin: Literal["dataset", "extra_member"]


def diagnose_heldout_loss(
    heldout: HeldoutLosses | None, early_epoch: int, late_epoch: int, unit: SnapshotUnit = "epoch"
) -> Diagnostics:
    """Collect the losses before training and after both snapshots, and warn where they do not fall.

    Args:
        heldout: what was measured, None where no row was held out.
        early_epoch: epoch of the early snapshot.
        late_epoch: epoch of the late snapshot.
        unit: what snapshots are counted in.
    """
    if heldout is None:
        return Diagnostics({"heldout_loss": {"base_model": None}})
    losses_by_epoch = {str(epoch): loss for epoch, loss in heldout.losses.items()}
    values: dict[str, Any] = {
        "heldout_loss": {"base_model": heldout.base_loss, **losses_by_epoch},
        "heldout_rows": {"count": heldout.rows, "origin": heldout.origin},
    }
    early_loss, late_loss = heldout.losses[early_epoch], heldout.losses[late_epoch]
    if not late_loss < heldout.base_loss:
        return Diagnostics(
            values,
            [
                FailedDiagnostic(
                    "heldout_loss_fell",
                    f"the proxy's held-out loss did not fall ({heldout.base_loss:.3f} without adapters, "
                    f"{late_loss:.3f} at {unit} {late_epoch}, on {heldout.rows:,} rows); raise the learning rate if it "
                    "hardly moved, lower the rate if the loss rose",
                )
            ],
        )
    if late_loss > (1 + TOLERATED_RISE) * early_loss:
        return Diagnostics(
            values,
            [
                FailedDiagnostic(
                    "heldout_loss_stays_down",
                    f"the proxy's held-out loss rose again, from {early_loss:.3f} at {unit} {early_epoch} to "
                    f"{late_loss:.3f} at {unit} {late_epoch} (on {heldout.rows:,} rows): it learns the rows by heart; "
                    "choose earlier epochs, or lower the learning rate",
                )
            ],
        )
    return Diagnostics(values)
