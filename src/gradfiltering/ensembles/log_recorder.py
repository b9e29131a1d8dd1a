"""Recorder of gradient norms and losses, for the steps of training and for passes with frozen parameters."""

from collections.abc import Mapping

import numpy as np

from gradfiltering.data.examples import Examples
from gradfiltering.distributed.row_measurements import Column, RowMeasurements
from gradfiltering.ensembles.lora_ensemble import LoraEnsemble
from gradfiltering.errors import UserError
from gradfiltering.requests import EpochLog


def log_recorder(
    examples: Examples, member_count: int, more_columns: Mapping[str, Column] | None = None
) -> RowMeasurements:
    """Return a recorder of the gradient norm and loss of each example under each member.

    Args:
        examples: rows, each of which must be measured once for each member.
        member_count: M.
        more_columns: further measurements.
    """
    columns = {"grad_norm": Column(), "loss": Column(), **(more_columns or {})}
    return RowMeasurements(examples.example_ids, columns, member_count)


def build_log(tables: Mapping[str, np.ndarray], examples: Examples, settings: LoraEnsemble) -> EpochLog:
    """Build the log, in float64, from the complete tables of a `log_recorder`.

    Args:
        tables: [M, N] `grad_norm` and `loss`.
        examples: the recorded rows.
        settings: of the ensemble, to name in errors.

    Raises:
        UserError: a norm or a loss is not finite.
    """
    infinite = ~(np.isfinite(tables["grad_norm"]) & np.isfinite(tables["loss"]))  # [M, N]
    if infinite.any():
        first_ids = examples.example_ids[infinite.any(0)][:10].tolist()
        raise UserError(
            f"gradient norm or loss is not finite for {int(infinite.any(1).sum())} of {len(infinite)} members, rows "
            f"{first_ids}; lower the learning rate, clip the gradients, or look at those rows",
            owner=type(settings),
            arguments=("lr", "clip_norm"),
        )
    return EpochLog(examples.example_ids, tables["grad_norm"], tables["loss"], examples.response_tokens)
