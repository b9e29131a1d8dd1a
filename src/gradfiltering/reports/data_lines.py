"""The first lines about a run's data, the same on the screen and on the page."""

from collections.abc import Mapping
from typing import Any


def describe_cut_rows(run_summary: Mapping[str, Any]) -> str | None:
    """Say how many rows were cut and what they lost; None where the run did not get so far, or is of an old version."""
    data_summary = run_summary.get("data", {})
    truncated = data_summary.get("truncated")
    if not isinstance(truncated, Mapping):
        return None
    limit = f"{data_summary['max_tokens']:,} tokens"
    if not truncated["rows"]:
        return f"No row was cut: each fits into {limit}"
    total_tokens = data_summary["tokens"] + truncated["tokens"]
    scored_rows = data_summary["examples"] - data_summary["unscored"]
    return (
        f"{truncated['rows']:,} of {scored_rows:,} rows were cut to {limit} and lost {truncated['tokens']:,} tokens, "
        f"{truncated['tokens'] / total_tokens:.1%} of all"
    )


def describe_hygiene(run_summary: Mapping[str, Any]) -> str | None:
    """Say how many rows show signs of poor quality; None where they were not counted."""
    hygiene = run_summary.get("hygiene")
    if hygiene is None:
        return None
    shown_counts = [f"{name.replace('_', ' ')} {count:,}" for name, count in hygiene["counts"].items() if count]
    if not shown_counts:
        return f"None of {hygiene['rows']:,} rows shows a sign of poor quality"
    dropped_words = f"{hygiene['dropped']:,} were dropped" if hygiene["dropped"] else "none was dropped"
    return f"Signs of poor rows, of {hygiene['rows']:,}: {', '.join(shown_counts)}; {dropped_words}"


def describe_drawn_rows(run_summary: Mapping[str, Any]) -> str | None:
    """Say how many rows were drawn for the time that the user gave; None where all were taken."""
    plan = run_summary.get("plan", {})
    if not plan.get("minutes") or plan["rows"] >= plan["pool_rows"]:
        return None
    return (
        f"{plan['rows']:,} of {plan['pool_rows']:,} rows, so that the run takes {plan['minutes']:g} minutes; drawn by "
        f"seed {plan['seed']}"
    )


def describe_study_part(run_summary: Mapping[str, Any]) -> str | None:
    """Say how many rows are of the part of a study that the run uses; None where it uses all."""
    study_part = run_summary.get("study_part")
    if study_part is None:
        return None
    return (
        f"{study_part['rows']:,} of {study_part['all_rows']:,} rows are of this part of the study; the others are "
        "listed as unscored"
    )


def describe_proxy(run_summary: Mapping[str, Any]) -> str | None:
    """Say how well the proxy without adapters predicts the rows, against guessing.

    The share of their tokens that are unknown to it stands beside it. None where it was not measured.
    """
    diagnostics = run_summary.get("diagnostics", {})
    if "chance_loss" not in diagnostics:
        return None
    responses = "chosen responses" if learns_pairs(run_summary) else "responses"
    return (
        f"The proxy without adapters predicts the {responses} at {diagnostics['base_loss']:.2f} nats a token, guessing "
        f"at {diagnostics['chance_loss']:.2f}; {diagnostics['unknown_token_share']:.1%} of the rows' tokens are "
        "unknown to it"
    )


def proxy_knows_rows(run_diagnostics: Mapping[str, Any]) -> bool:
    """Return False where a run found that its proxy knows little of the rows; True where it did not look."""
    return bool(run_diagnostics.get("proxy_knows_rows", True))


def learns_pairs(run_summary: Mapping[str, Any]) -> bool:
    """Return True for a run on preference rows."""
    return bool(run_summary.get("objective", {}).get("pairs", False))


def find_loss_unit(run_summary: Mapping[str, Any]) -> str:
    """Return the unit of a run's losses in words."""
    return str(run_summary.get("objective", {}).get("unit", "nats per response token"))


def find_snapshot_unit(run_summary: Mapping[str, Any]) -> str:
    """Return what the snapshots of a run are counted in: epoch or update."""
    return str(run_summary.get("proxy", {}).get("unit", "epoch"))


def describe_heldout_loss(run_summary: Mapping[str, Any]) -> str | None:
    """Say how the proxy's held-out loss fell; None where no gradients were logged, or by an old version."""
    diagnostics = run_summary.get("diagnostics", {})
    losses = dict(diagnostics.get("heldout_loss", {}))
    base_loss = losses.pop("base_model", losses.pop("bare", None))  # "bare" in runs of earlier versions
    if "heldout_loss" not in diagnostics:
        return None
    if base_loss is None:
        return "Held-out loss of the proxy: not measured, since no row was held out"
    rows = diagnostics.get("heldout_rows", {})
    meaning = "that this extra member never saw" if rows.get("origin") == "extra_member" else "set aside by the data"
    row_words = f" ({rows['count']:,} rows {meaning})" if rows else ""
    unit = find_snapshot_unit(run_summary)
    later_losses = "".join(f", {loss:.2f} after {unit} {epoch}" for epoch, loss in losses.items() if loss is not None)
    return f"Held-out loss of the proxy: {base_loss:.2f} before{later_losses}{row_words}"


def describe_data(run_summary: Mapping[str, Any]) -> list[str]:
    """The lines that are known."""
    lines = (
        describe_study_part(run_summary),
        describe_drawn_rows(run_summary),
        describe_cut_rows(run_summary),
        describe_hygiene(run_summary),
        describe_proxy(run_summary),
        describe_heldout_loss(run_summary),
    )
    return [line for line in lines if line is not None]
