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
