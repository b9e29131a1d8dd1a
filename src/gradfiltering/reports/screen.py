"""Text on the screen at the start and at the end of a run, and the tables behind it for the log."""

import re
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradfiltering.reports.data_lines import (
    describe_cut_rows,
    describe_data,
    describe_heldout_loss,
    describe_hygiene,
    describe_proxy,
    find_loss_unit,
    find_snapshot_unit,
    learns_pairs,
    proxy_knows_rows,
)
from gradfiltering.reports.judge_lines import describe_judge, verdicts_are_usable
from gradfiltering.reports.verdict_lines import DO_NOT_USE_IT, USE_IT, format_command_time, format_verdict

SOURCES_PRINTED = 20
LEFT_COLUMNS = ("stage", "source", "kind", "model", "against", "prompts", "")
LAYOUT_MEANINGS = {
    "chat": "the model's own chat template",
    "roles": "a plain layout of roles, since the model has no chat template that serves",
}
FILE_MEANINGS = {
    "report.html": "what was selected and why, for a browser",
    "subset.jsonl": "the selected rows",
    "subset_as_messages.jsonl": "the same as conversations",
    "subset_as_prompt_completion.jsonl": "the same as prompts with completions",
    "scores.parquet": "score and rank of every row",
}
BASELINE_WORDS = {"full": "all rows", "random": "random rows"}
ALL_SETS = "all"  # prompt sets together
HELD_OUT = "held out"  # the reasons for rows that are set aside on purpose begin so
DOUBTS_PRINTED = 2
CLAUSE_END = re.compile(r"(?<=.{12}): |(?<=.{12}); |(?<=.{12})\. ", re.DOTALL)
DETAIL_WIDTH = 120
CUT_SHORT = 10  # characters that breaking a text between words may take


def announce_run(folder: str, console: Console) -> None:
    """Announce a run and its folder, before anything that takes long to import."""
    console.print(Text.assemble(("gradfiltering", "bold"), f" writes to {folder}"), soft_wrap=True)


def print_result(run_summary: Mapping[str, Any], folder: Path, console: Console) -> None:
    """Print what came out, in at most 20 lines of 80 columns: verdict, doubts, rows, files, and what to do next."""
    details_file = "report.html" if (folder / "report.html").exists() else "summary.json"
    console.rule("[bold]Result")
    if not proxy_knows_rows(run_summary["diagnostics"]):
        console.print(Text("The proxy knows little of these rows: do not rely on their scores", "bold red"))
        for line in (describe_proxy(run_summary), describe_heldout_loss(run_summary)):
            if line is not None:
                console.print(Text(line))
    judge_line = describe_judge(run_summary)
    if judge_line is not None:
        # What stands in brackets is on the page.
        console.print(Text(judge_line.partition(" (")[0], "" if verdicts_are_usable(run_summary) else "bold red"))
    verdict = run_summary["verdict"]
    console.print(Text(format_verdict(verdict), "bold"))
    for line in describe_selection(run_summary):
        console.print(Text(line))
    for line in describe_doubts(run_summary["diagnostics"], details_file):
        doubt = Text.assemble(("! ", "bold yellow"), line)
        doubt.truncate(console.width, overflow="ellipsis")
        console.print(doubt)
    for line in (describe_cut_rows(run_summary), describe_hygiene(run_summary)):
        if line is not None:
            shown_line = Text(line)
            shown_line.truncate(2 * console.width - CUT_SHORT, overflow="ellipsis")  # the page has all of it
            console.print(shown_line)
    if verdict["command"] is not None:
        console.print(Text(f"To settle it ({format_command_time(verdict)}): {verdict['command']}"), soft_wrap=True)
    console.print(Text.assemble(("Files", "bold"), f" in {folder}"), soft_wrap=True)
    present_files = {name: meaning for name, meaning in FILE_MEANINGS.items() if (folder / name).exists()}
    name_width = max(map(len, present_files), default=0)
    for name, meaning in present_files.items():
        console.print(Text(f"  {name:<{name_width}}  {meaning}"))
    console.print(Text.assemble(("Next", "bold"), f"  {describe_next_step(run_summary, details_file)}"))


def describe_selection(run_summary: Mapping[str, Any]) -> list[str]:
    """Say how many rows were selected, and which winning scores this seed gave, which are no verdict."""
    if "selection" not in run_summary:
        return []
    selection_summary = run_summary["selection"]
    method = f" by {selection_summary['scorer']}" if selection_summary["scorer"] else ""
    data_summary = run_summary["data"]
    all_rows = data_summary["examples"]
    counted_rows = run_summary.get("counted_rows") or all_rows
    taken_words = f" taken from {all_rows:,}" if counted_rows < all_rows else ""
    selected_words = f"{selection_summary['selected']:,} of {counted_rows:,} rows{taken_words} selected{method}"
    held_out_count = sum(
        count for reason, count in data_summary.get("unscored_reasons", {}).items() if reason.startswith(HELD_OUT)
    )
    other_count = data_summary["unscored"] - held_out_count
    parts = [(held_out_count, "held out"), (other_count, "were not scored")]
    left_out_words = ", ".join(f"{count:,} {fate}" for count, fate in parts if count)
    selected_words += f"; {left_out_words}" if left_out_words else ""
    scores_count = verdicts_are_usable(run_summary) and proxy_knows_rows(run_summary["diagnostics"])
    if "pws" not in run_summary or not scores_count:
        return [selected_words]
    scores = [
        f"{_describe_score(sets[ALL_SETS])} against {BASELINE_WORDS.get(baseline, baseline)}"
        for baseline, sets in run_summary["pws"].items()
    ]
    return [selected_words, f"Winning score (even: 1): {', '.join(scores)}"]


def _describe_score(score: Mapping[str, Any]) -> str:
    """Write a pairwise winning score."""
    return "not readable" if score["value"] is None else f"{score['value']:.2f}"


def describe_doubts(run_diagnostics: Mapping[str, Any], details_file: str) -> list[str]:
    """Say in short what the run warns of.

    Args:
        run_diagnostics: of the summary.
        details_file: has the warnings in full, with remedies.
    """
    warnings = run_diagnostics.get("warnings", [])
    # What the proxy does not know stands above, and weighs more than the rest.
    printed_count = DOUBTS_PRINTED if proxy_knows_rows(run_diagnostics) else 0
    doubts = [CLAUSE_END.split(warning_text, maxsplit=1)[0] for warning_text in warnings[:printed_count]]
    more_count = len(warnings) - len(doubts)
    if more_count:
        counted = f"{more_count} more" if doubts else str(more_count)
        doubts.append(f"{counted} {'warnings are' if more_count > 1 else 'warning is'} in {details_file}")
    return doubts


def describe_next_step(run_summary: Mapping[str, Any], details_file: str) -> str:
    """Say what to do with the result.

    Args:
        run_summary: of the run.
        details_file: has everything that the screen leaves out.
    """
    run_diagnostics = run_summary["diagnostics"]
    if not proxy_knows_rows(run_diagnostics):
        return "take a proxy that knows such rows, such as proxy=smollm2"
    if "selection" not in run_summary:
        return "give the same command with until=select; what is done is not done again"
    if run_summary["verdict"]["verdict"] == USE_IT:
        return f"train on subset.jsonl; {details_file} says how sure this is"
    if run_diagnostics.get("warnings") and verdicts_are_usable(run_summary):
        if run_summary["verdict"]["command"] is not None:
            return f"see in {details_file} what to change (!), then run the command above"
        return f"open {details_file}: it says what to change for each warning (!)"
    if run_summary["verdict"]["verdict"] == DO_NOT_USE_IT:
        return f"do not train on subset.jsonl; {details_file} says why"
    if "pws" not in run_summary:
        return f"open {details_file}; to test the rows before you train on them, run the command above"
    if not verdicts_are_usable(run_summary):
        return "choose another judge; the answers are not generated again"
    if run_summary["verdict"]["command"] is not None:
        return f"run the command above to decide; {details_file} shows the rows, and why"
    return f"open {details_file} before you train on subset.jsonl: no advantage is shown yet"


def format_details(run_summary: Mapping[str, Any]) -> str:
    """Format stages, selection, diagnostics and verdicts as tables of text, for the log."""
    console = Console(file=StringIO(), width=DETAIL_WIDTH, color_system=None)
    run_diagnostics = run_summary["diagnostics"]
    for table in _build_details(run_summary, run_diagnostics):
        console.print(table)
    for warning_text in run_diagnostics.get("warnings", []):
        console.print(Text(f"warning  {warning_text}"))
    text_stream = console.file
    assert isinstance(text_stream, StringIO)
    return text_stream.getvalue()


def _build_details(run_summary: Mapping[str, Any], run_diagnostics: Mapping[str, Any]) -> Iterator[Table | Text]:
    for line in describe_data(run_summary):
        yield Text(line)
    yield _build_stages(run_summary)
    if "templates" in run_summary:
        yield Text(f"Prompt template  {describe_templates(run_summary)}")
    if "positive_drop_share" in run_diagnostics:
        yield _build_ensemble(run_diagnostics, find_snapshot_unit(run_summary))
    if "selection" in run_summary:
        yield _build_selection(run_summary)
    if "sources" in run_diagnostics:
        yield _build_sources(run_diagnostics["sources"])
    if "truth" in run_diagnostics:
        yield _build_truth(run_diagnostics["truth"])
    if "target" in run_summary:
        yield _build_targets(run_summary)
    if "pws" in run_summary:
        yield _build_winning_scores(run_summary["pws"], verdicts_are_usable(run_summary))
        # Imported here because it brings numerical libraries along, and the start of a run does without.
        from gradfiltering.reports.verdict_tables import build_trust_table

        yield build_trust_table(run_summary["pws"], run_summary["judge"])


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
    table = _new_table("Stages", "stage", "seconds", "planned", "peak memory", "planned", "")
    planned_stages = {stage["name"]: stage for stage in run_summary.get("plan", {}).get("stages", [])}
    for stage in run_summary["stages"]:
        peak_bytes = run_summary["cost"][stage["name"]]["peak_bytes"]
        reused = "reused" if stage["reused"] else ""
        planned_stage = planned_stages.get(stage["name"], {})
        planned_seconds, planned_bytes = planned_stage.get("seconds"), planned_stage.get("peak_bytes")
        table.add_row(
            stage["name"],
            f"{stage['seconds']:.1f}",
            "" if planned_seconds is None else f"{planned_seconds:.1f}",
            f"{peak_bytes / 2**20:,.0f} MiB",
            "" if not planned_bytes else f"{planned_bytes / 2**20:,.0f} MiB",
            reused,
        )
    return table


def _build_ensemble(run_diagnostics: Mapping[str, Any], unit: str) -> Table:
    table = _new_table("Proxy ensemble")
    table.add_row("gradient norm fell for", f"{run_diagnostics['positive_drop_share']:.0%} of rows")
    table.add_row("median relative drop", f"{run_diagnostics['median_relative_drop']:+.3f}")
    variances = {name: value for name, value in run_diagnostics["relative_variance"].items() if value is not None}
    printed_values = ", ".join(f"{value:.4f} ({unit} {name})" for name, value in variances.items())
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
    if learns_pairs(run_summary):
        table.title = f"Target models (losses in {find_loss_unit(run_summary)})"
        table.add_column("pairs ranked right", justify="right")
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
        if learns_pairs(run_summary):
            accuracy = target_result.get("heldout_accuracy")
            cells.append("–" if accuracy is None else f"{accuracy:.1%}")
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
