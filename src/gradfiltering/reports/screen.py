"""Text on the screen at the start and at the end of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradfiltering.reports.data_lines import describe_data
from gradfiltering.reports.judge_lines import describe_judge, verdicts_are_usable

SOURCES_PRINTED = 20
LEFT_COLUMNS = ("stage", "source", "kind", "model", "against", "prompts", "")
LAYOUT_MEANINGS = {
    "chat": "the model's own chat template",
    "roles": "a plain layout of roles, since the model has no chat template that serves",
}
FILE_MEANINGS = {
    "report.html": "what was selected and why: open it in a browser",
    "subset.jsonl": "the selected rows",
    "subset_as_messages.jsonl": "the same as conversations, for other trainers",
    "subset_as_prompt_completion.jsonl": "the same as prompts with completions, for other trainers",
    "scores.parquet": "score and rank of every row",
    "unscored.parquet": "rows without a score, with the reason",
    "verdicts.jsonl": "every pairwise verdict",
    "summary.json": "all numbers of this run",
}


def announce_run(folder: str, console: Console) -> None:
    """Announce a run and its folder, before anything that takes long to import."""
    console.print(Text.assemble(("gradfiltering", "bold"), f" writes to {folder}; loading libraries …"), soft_wrap=True)


def print_summary(run_summary: Mapping[str, Any], folder: Path, console: Console) -> None:
    """Print stages, selection, diagnostics with their warnings, PWS, and the files of the run."""
    run_diagnostics = run_summary["diagnostics"]
    console.rule("[bold]gradfiltering")
    if not run_diagnostics.get("proxy_knows_rows", True):
        console.print(Text("The proxy knows little of these rows: do not rely on their scores", "bold red"))
    judge_line = describe_judge(run_summary)
    if judge_line is not None:
        console.print(Text(judge_line, "" if verdicts_are_usable(run_summary) else "bold red"))
    for line in describe_data(run_summary):
        console.print(Text(line))
    console.print(_build_stages(run_summary))
    if "templates" in run_summary:
        console.print(Text.assemble(("Prompt template", "bold"), f"  {describe_templates(run_summary)}"))
    if "positive_drop_share" in run_diagnostics:
        console.print(_build_ensemble(run_diagnostics))
    if "selection" in run_summary:
        console.print(_build_selection(run_summary))
    if "sources" in run_diagnostics:
        console.print(_build_sources(run_diagnostics["sources"]))
    if "truth" in run_diagnostics:
        console.print(_build_truth(run_diagnostics["truth"]))
    if "target" in run_summary:
        console.print(_build_targets(run_summary))
    if "pws" in run_summary:
        console.print(_build_winning_scores(run_summary["pws"], verdicts_are_usable(run_summary)))
        # Imported here because it brings numerical libraries along, and the start of a run does without.
        from gradfiltering.reports.verdict_tables import build_trust_table

        console.print(build_trust_table(run_summary["pws"], run_summary["judge"]))
    for warning_text in run_diagnostics.get("warnings", []):
        console.print(Text.assemble(("warning  ", "bold yellow"), warning_text))
    console.print(Text.assemble(("Files", "bold"), f" in {folder}"), soft_wrap=True)
    for name, meaning in FILE_MEANINGS.items():
        if (folder / name).exists():
            console.print(f"  {name:<18} {meaning}")


def describe_templates(run_summary: Mapping[str, Any]) -> str:
    """Say by which prompt template each model of a run saw the rows, in words."""
    layouts = run_summary["templates"]
    return "; ".join(f"{role}: {LAYOUT_MEANINGS.get(layout, layout)}" for role, layout in layouts.items())


def _new_table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left", show_header=bool(headings))
    for heading in headings:
        table.add_column(heading, justify="left" if heading in LEFT_COLUMNS else "right")
    return table


def _build_stages(run_summary: Mapping[str, Any]) -> Table:
    table = _new_table("Stages", "stage", "seconds", "peak memory", "")
    for stage in run_summary["stages"]:
        peak_bytes = run_summary["cost"][stage["name"]]["peak_bytes"]
        reused = "reused" if stage["reused"] else ""
        table.add_row(stage["name"], f"{stage['seconds']:.1f}", f"{peak_bytes / 2**20:,.0f} MiB", reused)
    return table


def _build_ensemble(run_diagnostics: Mapping[str, Any]) -> Table:
    table = _new_table("Proxy ensemble")
    table.add_row("gradient norm fell for", f"{run_diagnostics['positive_drop_share']:.0%} of rows")
    table.add_row("median relative drop", f"{run_diagnostics['median_relative_drop']:+.3f}")
    variances = {name: value for name, value in run_diagnostics["relative_variance"].items() if value is not None}
    printed_values = ", ".join(f"{value:.4f} (epoch {name})" for name, value in variances.items())
    table.add_row("members' disagreement V/G²", printed_values or "one member")
    return table


def _build_selection(run_summary: Mapping[str, Any]) -> Table:
    table = _new_table("Selection")
    selection_summary, data_summary = run_summary["selection"], run_summary["data"]
    method = selection_summary["selector"]
    if selection_summary["scorer"]:
        method += f" by {selection_summary['scorer']}"
    selected_words = f"{selection_summary['selected']} of {data_summary['examples']} selected"
    table.add_row("rows", f"{selected_words}, {data_summary['unscored']} not scored")
    table.add_row("method", method)
    for name, value in run_summary["diagnostics"].get("score_spearman", {}).items():
        if value is not None:
            table.add_row(f"Spearman of score and {name}", f"{value:+.2f}")
    return table


def _build_sources(source_shares: Mapping[str, Any]) -> Table:
    title = f"Sources (spread over {source_shares['effective']:.0%} as many as the pool)"
    table = _new_table(title, "source", "pool", "selected")
    shares = sorted(source_shares["share"].items(), key=lambda item: -item[1]["selected"])
    for name, share in shares[:SOURCES_PRINTED]:
        table.add_row(Text(name), f"{share['pool']:.1%}", f"{share['selected']:.1%}")
    return table


def _build_truth(planted_truth: Mapping[str, Any]) -> Table:
    table = _new_table("Planted truth", "kind", "pool", "selected", "95 % interval")
    for kind, share in planted_truth["share"].items():
        interval = f"{share['low']:.1%} – {share['high']:.1%}"
        table.add_row(kind, f"{share['pool']:.1%}", f"{share['selected']:.1%}", interval)
    auc_texts = [
        f"{name} {auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]" for name, auc in planted_truth["auc"].items()
    ]
    table.caption = "AUC of clean over planted: " + ", ".join(auc_texts) if auc_texts else ""
    return table


def _build_targets(run_summary: Mapping[str, Any]) -> Table:
    model_metrics = run_summary.get("metrics", {})
    measured = {name for sets in model_metrics.values() for values in sets.values() for name in values}
    metric_names = [name for name in ("exact_match", "chrf") if name in measured]
    table = _new_table("Target models", "model", "rows", "steps", "train loss", "held-out")
    for name in metric_names:
        table.add_column(name.split("_")[0], justify="right")
    for model, target_result in run_summary["target"].items():
        cells = [
            model,
            str(target_result["examples"]),
            str(target_result["steps"]),
            f"{target_result['final_loss']:.3f}",
            "–" if target_result["heldout_loss"] is None else f"{target_result['heldout_loss']:.3f}",
        ]
        for name in metric_names:
            values = [sets[name] for sets in model_metrics.get(model, {}).values() if sets.get(name) is not None]
            cells.append(f"{sum(values) / len(values):.3f}" if values else "–")
        table.add_row(*cells)
    return table


def _build_winning_scores(winning_scores: Mapping[str, Any], is_usable: bool) -> Table:
    title = "Pairwise winning score of the candidate (1 = on a par)"
    if not is_usable:
        title += ": unusable, its judge agrees too little with known preferences"
    table = _new_table(title, "against", "prompts", "PWS", "interval", "win / tie / loss", "unparsed")
    for baseline, sets in winning_scores.items():
        for prompt_set, score in sets.items():
            value = "–" if score["value"] is None else f"{score['value']:.3f}"
            interval = "–" if score["low"] is None else f"{score['low']:.3f} – {score['high']:.3f}"
            counts = f"{score['wins']} / {score['ties']} / {score['losses']}"
            table.add_row(baseline, prompt_set, value, interval, counts, str(score["unparsed"]))
    return table
