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


def describe_data(run_summary: Mapping[str, Any]) -> list[str]:
    """The lines that are known."""
    return [line for line in (describe_cut_rows(run_summary), describe_hygiene(run_summary)) if line is not None]
