"""The first lines about a run's judge, the same on the screen, on the page and on cards."""

from collections.abc import Mapping
from typing import Any


def verdicts_are_usable(run_summary: Mapping[str, Any]) -> bool:
    """Return False where the judge was tried on labelled pairs and agreed too little with them."""
    return bool((run_summary.get("judge_agreement") or {}).get("usable", True))


def describe_judge(run_summary: Mapping[str, Any]) -> str | None:
    """Say how far the judge agreed with known preferences; None where that was not tried."""
    agreement = run_summary.get("judge_agreement")
    if agreement is None:
        return None
    measured = (
        f"kappa {agreement['kappa']:.2f} [{agreement['kappa_low']:.2f}, {agreement['kappa_high']:.2f}] with "
        f"{agreement['pairs']:,} labelled pairs, {agreement['least_kappa']:g} is asked for"
    )
    details = [f"{agreement['unreadable_share']:.0%} without readable scores"]
    if agreement["contradiction_rate"] is not None:
        details.append(f"orders contradict in {agreement['contradiction_rate']:.0%} of the others")
    if not verdicts_are_usable(run_summary):
        return f"The judge's verdicts are unusable: {measured} ({'; '.join(details)})"
    return f"The judge agrees with known preferences: {measured} ({'; '.join(details)})"
