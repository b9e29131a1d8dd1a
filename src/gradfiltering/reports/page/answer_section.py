"""The first section of a run's page: the selection, the judge's verdicts, costs, and reasons for doubt."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from gradfiltering.reports.judge_lines import verdicts_are_usable
from gradfiltering.reports.number_formats import format_interval, format_number
from gradfiltering.reports.page.charts import Chart, ChartLabels, ReferenceLine, interval_chart
from gradfiltering.reports.run_files import RunFiles

ON_A_PAR = 1.0
# No ticks: a diagnostic within its limit does not show that the rows are worth anything.
WITHIN_LIMIT, BEYOND_LIMIT = "within the limit", "⚠ beyond the limit"
LIMITED_DIAGNOSTICS = (
    ("positive_drop_share", "at least", "Did gradient norms fall? (share of rows)"),
    ("median_relative_drop", "at least", "Median relative drop"),
    ("relative_variance", "at least", "Do the members disagree? (median V/G² at the late epoch)"),
    ("update_ratio", "at most", "Are the adapters still small? (‖ΔW‖/‖W‖)"),
    ("member_agreement", "at least", "Do the members' rankings agree? (Spearman)"),
    ("negative_selected_share", "at most", "Negative scores among the selected"),
    ("length_correlation", "at most", "Does the score follow length? (|Spearman|)"),
    ("source_spread", "at least", "Do the selected rows cover the sources? (effective share)"),
    ("chance_loss_share", "at most", "Does the proxy know the rows? (its loss against guessing)"),
    ("unknown_token_share", "at most", "Tokens that the proxy does not know (share)"),
    ("easiness", "at least", "Are the selected rows trivially easy? (loss against the pool's)"),
)


def format_headline(run_files: RunFiles) -> str:
    """Say in a sentence how many rows were selected, and by which method."""
    selection_summary = run_files.selection
    if not selection_summary:
        read_words = f"{run_files.row_count:,} rows were read; none has been selected yet"
        return read_words if run_files.row_count else "No row was read"
    method = selection_summary["selector"]
    if selection_summary.get("scorer"):
        method = f"{'the best' if method == 'top' else method} by {selection_summary['scorer']}"
    percent = 100 * selection_summary["fraction"]
    counted_words = f"{run_files.counted_rows:,} rows"
    if run_files.counted_rows < run_files.row_count:
        counted_words += f" taken from {run_files.row_count:,}"
    return f"{selection_summary['selected']:,} of {counted_words} ({percent:.3g}%) were selected: {method}"


def summarise_verdicts(run_files: RunFiles) -> list[dict[str, Any]]:
    """Collect the verdicts over all prompts for each baseline, with their meaning in words."""
    return [
        {"baseline": baseline, **sets["all"], "meaning": interpret_verdicts(run_files.summary, sets["all"])}
        for baseline, sets in run_files.pairwise_scores.items()
    ]


def interpret_verdicts(run_summary: Mapping[str, Any], score: Mapping[str, Any]) -> str:
    """Say in words what a pairwise winning score shows, which is nothing where its judge is not to be relied on."""
    if not verdicts_are_usable(run_summary):
        return "unusable: its judge agrees too little with known preferences"
    return interpret_interval(score)


def interpret_interval(score: Mapping[str, Any]) -> str:
    """Say in words where the interval of a pairwise winning score of one seed lies, which is no verdict."""
    if score["value"] is None:
        return "no verdict could be read"
    if score["low"] is None:
        return "no interval: too few prompts were judged"
    if score["low"] > ON_A_PAR:
        return "the whole interval lies above 1 for the prompts of this seed"
    if score["high"] < ON_A_PAR:
        return "the whole interval lies below 1 for the prompts of this seed"
    return "the interval holds 1"


def draw_winning_scores(run_files: RunFiles) -> Chart | None:
    """Draw the pairwise winning scores with their intervals, unless their judge is not to be relied on."""
    if not verdicts_are_usable(run_files.summary):
        return None
    lines = []
    for baseline, sets in run_files.pairwise_scores.items():
        shown_sets = sets if len(sets) > 2 else {"all": sets["all"]}  # a single set and the pool are equal
        for prompt_set, score in shown_sets.items():
            if score["value"] is not None and score["low"] is not None:
                name = f"against {baseline}" + (f", {prompt_set}" if len(shown_sets) > 1 else "")
                ends = {"low": score["low"], "high": score["high"]}
                lines.append({"series": "candidate", "x": score["value"], "y": name, **ends})
    if not lines:
        return None
    confidence = run_files.options("judge").get("confidence")
    level = f"{confidence:.0%} " if isinstance(confidence, float) else ""
    chart_labels = ChartLabels(
        name="pws",
        question="Does the model trained on the selected rows win?",
        reading=f"Whiskers are {level}bootstrap intervals over prompts; each pair was judged in both orders.",
        x_title="pairwise winning score (0 loses always, 1 on a par, 2 wins always)",
        y_title="comparison",
    )
    return interval_chart(chart_labels, pd.DataFrame(lines), reference_lines=[ReferenceLine("x", ON_A_PAR, "on a par")])


def tabulate_judge(run_files: RunFiles) -> pd.DataFrame:
    """Tabulate the judge's behaviour for each baseline."""
    table = {}
    for baseline in run_files.pairwise_scores:
        judge_behaviour = run_files.summary.get("judge", {}).get(baseline)
        if judge_behaviour:
            level = judge_behaviour.get("length_controlled")
            mean_lengths = [judge_behaviour.get(name) for name in ("candidate_mean_length", "against_mean_length")]
            table[f"against {baseline}"] = {
                "judged": str(judge_behaviour["judged"]),
                "orders contradict": format_number(judge_behaviour.get("contradiction_rate")),
                "longer answer wins": format_number(judge_behaviour.get("longer_wins_share")),
                "mean length, candidate / other": " / ".join(format_number(length, 1) for length in mean_lengths),
                "PWS at equal length (tanh)": format_interval(level),
                "PWS at equal length (log ratio)": format_interval(judge_behaviour.get("length_controlled_log_ratio")),
            }
    return pd.DataFrame.from_dict(table, orient="index")


def tabulate_metrics(run_files: RunFiles) -> pd.DataFrame:
    """Tabulate metrics against references, where answers were compared with any."""
    table = {
        f"{model}, {prompt_set}": {
            "exact match": format_number(values.get("exact_match")),
            "chrF": format_number(values.get("chrf")),
            "mean tokens": format_number(values.get("mean_response_tokens"), 1),
        }
        for model, sets in run_files.summary.get("metrics", {}).items()
        for prompt_set, values in sets.items()
        if values.get("references")
    }
    return pd.DataFrame.from_dict(table, orient="index")


def tabulate_costs(run_files: RunFiles) -> pd.DataFrame:
    """Tabulate each stage's seconds, memory and estimated operations."""
    table = {}
    for stage in run_files.stages:
        cost = run_files.summary.get("cost", {}).get(stage["name"], {})
        table[stage["name"]] = {
            "seconds": format_number(stage["seconds"], 1),
            "peak memory, MiB": f"{cost['peak_bytes'] / 2**20:,.0f}" if cost.get("peak_bytes") else "–",
            "operations (estimate)": f"{cost['flops']:.2g}" if cost.get("flops") else "–",
            "reused": "yes" if stage.get("reused") else "",
        }
    return pd.DataFrame.from_dict(table, orient="index")


def check_diagnostics(run_files: RunFiles) -> pd.DataFrame:
    """Hold the diagnostics against their limits: `value`, `limit` and `result` by the question they answer.

    What a run could not measure is not in the table; a scorer without gradients has few of them.
    """
    diagnostics, limits = run_files.diagnostics, run_files.options("diagnostics")
    relative_variances = diagnostics.get("relative_variance") or {}
    length_correlation = (diagnostics.get("score_spearman") or {}).get("response_tokens")
    update_ratios = [value for value in (diagnostics.get("update_ratio") or {}).values() if value is not None]
    values = {
        **{name: value for name, value in diagnostics.items() if not isinstance(value, Mapping)},
        "relative_variance": relative_variances.get(str(run_files.epochs.late)) if relative_variances else None,
        "update_ratio": max(update_ratios, default=None),
        "length_correlation": None if length_correlation is None else abs(length_correlation),
        "source_spread": (diagnostics.get("sources") or {}).get("effective"),
    }
    table = {}
    for name, limit_relation, question in LIMITED_DIAGNOSTICS:
        value, diagnostic_limit = values.get(name), limits.get(name)
        if value is not None and diagnostic_limit is not None:
            holds = value >= diagnostic_limit if limit_relation == "at least" else value <= diagnostic_limit
            table[question] = {"value": f"{value:.4g}", "limit": f"{limit_relation} {diagnostic_limit:g}"}
            table[question]["result"] = WITHIN_LIMIT if holds else BEYOND_LIMIT
    return pd.DataFrame.from_dict(table, orient="index")


def describe_checks(run_files: RunFiles, checks: pd.DataFrame) -> str:
    """Say how many of the diagnostics were measured and crossed no limit, and what that does not show."""
    if not len(checks):
        return "Nothing was tested here: this run measured none of the diagnostics that could speak against its rows"
    within_count = int((checks["result"] == WITHIN_LIMIT).sum())
    sentence = (
        f"{len(checks)} of {len(LIMITED_DIAGNOSTICS)} diagnostics were measured, {within_count} are within limits"
    )
    if run_files.gradient_log is None:
        sentence += (
            ". The score reads no gradients, so that everything about the ensemble is untested, and what is measured "
            "says little about the rows' worth"
        )
    return sentence


def split_warning(text: str) -> tuple[str, str]:
    """Split a warning into the problem and its remedy, at a semicolon or the first full stop."""
    problem, separator, remedy = text.rpartition("; ")
    if not separator:
        problem, separator, remedy = text.partition(". ")
    return (problem, remedy[0].upper() + remedy[1:]) if separator and remedy else (text, "")


def list_missing_parts(run_files: RunFiles) -> list[str]:
    """List the parts that the page cannot show, and the reasons."""
    gradient_log = run_files.gradient_log
    parts = {
        "No gradients were logged (scorer and selector need none), so there is no ensemble.": gradient_log is None,
        "The ensemble has one member, so there is no variance V_t.": gradient_log and len(gradient_log.members) < 2,
        "No row was scored (the selector needs no score, or the run ended before).": run_files.scores is None,
        "No rows were selected; the run ended before.": run_files.selected_ids is None,
        "No target model was trained, so there is no convergence to show.": not run_files.curves,
        "Nothing was judged, so this run does not show whether the subset is better.": not run_files.pairwise_scores,
    }
    return [sentence for sentence, is_missing in parts.items() if is_missing]
