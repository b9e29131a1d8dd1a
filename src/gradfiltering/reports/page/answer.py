"""The answer first: what was chosen, whether it won, what it cost, and what speaks against trusting it."""

from collections.abc import Mapping
from typing import Any

from gradfiltering.reports.page.charts import Chart, Mark, Series
from gradfiltering.reports.page.folder import RunFolder

ON_A_PAR = 1.0


def headline(run: RunFolder) -> str:
    """One sentence: what was chosen and how."""
    chosen = run.summary.get("selection")
    if chosen is None:
        return f"{run.total:,} rows were looked at; none has been chosen yet" if run.total else "This run chose nothing"
    how = f"{chosen['selector']} by {chosen['scorer']}" if chosen.get("scorer") else chosen["selector"]
    return f"{chosen['selected']:,} of {run.total:,} rows ({100 * chosen['fraction']:.3g}%) were chosen: {how}"


def verdicts(run: RunFolder) -> list[dict[str, Any]]:
    """What the judge said over all prompts, per opponent: numbers and their meaning in words."""
    found = []
    for against, sets in run.summary.get("pws", {}).items():
        one = sets["all"]
        found.append({"against": against, **one, "words": _words(one), "bias": run.summary["judge"].get(against, {})})
    return found


def _words(one: Mapping[str, Any]) -> str:
    if one["value"] is None:
        return "no verdict could be read"
    if one["low"] is None:
        return "no interval: too few prompts were judged"
    if one["low"] > ON_A_PAR:
        return "better: the whole interval lies above 1"
    if one["high"] < ON_A_PAR:
        return "worse: the whole interval lies below 1"
    return "no difference shown: the interval holds 1"


def pws_chart(run: RunFolder) -> Chart | None:
    """The pairwise winning scores with their intervals."""
    names, values, low, high = [], [], [], []
    for against, sets in run.summary.get("pws", {}).items():
        shown = sets if len(sets) > 2 else {"all": sets["all"]}  # one set and the pool are the same
        for name, one in shown.items():
            if one["value"] is not None and one["low"] is not None:
                names.append(f"against {against}" + (f", {name}" if len(shown) > 1 else ""))
                values.append(one["value"])
                low.append(one["low"])
                high.append(one["high"])
    if not names:
        return None
    confidence = run.config["judge"].get("confidence")
    sure = f"{confidence:.0%} " if isinstance(confidence, float) else ""
    return Chart(
        name="pws",
        question="Does the model trained on the chosen rows win?",
        x_title="pairwise winning score (0 loses always, 1 on a par, 2 wins always)",
        y_title="comparison",
        series=[Series("", values, names, "points", low=low, high=high, across=True)],
        reading=f"Whiskers are {sure}bootstrap intervals over prompts; each pair was judged in both orders.",
        marks=[Mark("x", ON_A_PAR, "on a par")],
        height=130 + 44 * len(names),
    )


def costs(run: RunFolder) -> list[dict[str, Any]]:
    """Each stage's seconds, memory and estimated operations."""
    cost = run.summary.get("cost", {})
    return [{**stage, **cost.get(stage["name"], {})} for stage in run.summary.get("stages", [])]


def saved_seconds(summary: Mapping[str, Any]) -> float:
    """Seconds that members, targets and answers taken from the store had taken when they were made.

    Where a run trains an ensemble and measures influences as well, the latter find the former's members in the store:
    the members are counted once, and not at all where this run trained them.
    """
    members = summary.get("proxy") or summary.get("influence") or {}
    targets = [one["seconds"] for one in summary.get("target", {}).values() if one.get("reused")]
    answers = summary.get("answers", {}).get("reused_seconds", 0.0)
    return float(members.get("reused_seconds", 0.0) + sum(targets) + answers)


def checks(run: RunFolder) -> list[dict[str, Any]]:
    """Diagnostics with a limit: what is asked, the value, the limit, and whether it holds."""
    found, limits = run.diagnostics, run.config.get("diagnostics", {})
    late = str(run.epochs.late)
    spearman = (found.get("score_spearman") or {}).get("response_tokens")
    ratios = [value for value in (found.get("update_ratio") or {}).values() if value is not None]
    asked = (
        ("Did gradient norms fall? (share of rows)", "positive_drop_share", found.get("positive_drop_share"), ">="),
        ("Median relative drop", "median_relative_drop", found.get("median_relative_drop"), ">="),
        (
            "Do the members disagree? (median V/G² at the late epoch)",
            "relative_variance",
            (found.get("relative_variance") or {}).get(late),
            ">=",
        ),
        ("Are the adapters still small? (‖ΔW‖/‖W‖)", "update_ratio", max(ratios, default=None), "<="),
        ("Do the members' rankings agree? (Spearman)", "member_agreement", found.get("member_agreement"), ">="),
        ("Negative scores among the chosen", "negative_selected_share", found.get("negative_selected_share"), "<="),
        (
            "Does the score follow length? (|Spearman|)",
            "length_correlation",
            None if spearman is None else abs(spearman),
            "<=",
        ),
        (
            "Do the chosen rows cover the sources? (effective share)",
            "source_spread",
            (found.get("sources") or {}).get("effective"),
            ">=",
        ),
        ("Are the chosen rows trivially easy? (loss against the pool's)", "easiness", found.get("easiness"), ">="),
    )
    rows = []
    for question, name, value, relation in asked:
        limit = limits.get(name)
        if value is not None and limit is not None:
            holds = value >= limit if relation == ">=" else value <= limit
            bound = ("at least " if relation == ">=" else "at most ") + f"{limit:g}"
            rows.append({"question": question, "value": value, "limit": bound, "holds": holds})
    return rows


def split_warning(text: str) -> tuple[str, str]:
    """What is wrong and what to do about it, where the sentence says so after a full stop or a semicolon."""
    for mark in ("; ", ". "):
        what, found, remedy = text.rpartition(mark) if mark == "; " else text.partition(mark)
        if found and remedy:
            return what, remedy[0].upper() + remedy[1:]
    return text, ""


def not_run(run: RunFolder) -> list[str]:
    """What the page cannot show, and why, in words."""
    missing = []
    if run.log is None:
        missing.append("No gradients were logged (the scorer and selector look at none), so the ensemble is not shown.")
    elif len(run.log.members) < 2:
        missing.append("The ensemble has one member, so there is no variance V_t.")
    if run.scores is None:
        missing.append("No row was scored (the selector looks at no score, or the run ended before).")
    if run.chosen is None:
        missing.append("No rows were chosen; the run ended before (until=).")
    if not run.curves:
        missing.append("No target model was trained, so there is no convergence to show.")
    if not run.summary.get("pws"):
        missing.append("Nothing was judged, so nobody knows from this run whether the subset is better.")
    return missing
