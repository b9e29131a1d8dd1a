"""The table of a sweep: a row for each job with its options, results and costs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradfiltering.reports.method_comparisons import build_method_table, strongest_first
from gradfiltering.reports.page.sweep_page import write_sweep_page
from gradfiltering.reports.paper_tables import PaperTable
from gradfiltering.reports.seed_tables import build_seed_table
from gradfiltering.reports.sweep_jobs import (
    NOT_KNOWN,
    SweepJob,
    average_over_others,
    compute_overlaps,
    compute_rank_correlations,
    find_varying_options,
    read_jobs,
)
from gradfiltering.reports.tuning_record import TuningRecord, is_tuning_sweep, list_study_marks, write_tuning
from gradfiltering.reports.verdict import judge_settings
from gradfiltering.reports.verdict_lines import format_command_time, format_verdict
from gradfiltering.reports.verdict_tables import COMPARISONS_PRINTED, compare_jobs
from gradfiltering.runs.files import atomic_path, write_json

VERDICTS_FILE = "verdicts.json"
# Column -> its heading on the screen, the most important ones first.
PRINTED_COLUMNS = {
    "job": "job",
    "asked_for": "options",
    "pws": "winning score",
    "warnings": "warnings",
    "heldout_loss": "held-out loss",
    "heldout_accuracy": "pairs ranked right",
    "selected": "selected",
    "jaccard": "same rows as others",
    "rank_correlation": "same order as others",
    "seconds": "seconds",
    "saved": "seconds saved",
}


def write_sweep(folder: Path, console: Console | None = None, reference: str | None = None) -> list[dict[str, Any]]:
    """Write the tables and the page of a sweep's folder, print the table, and return it: a row for each job.

    Args:
        folder: of the sweep.
        console: to print on.
        reference: the setting that all others are compared with; None compares every two.

    Raises:
        UserError: the folder holds no run, or no setting has the reference's name.
    """
    console = console or Console()
    sweep_jobs = read_jobs(folder)
    varying_options = find_varying_options(sweep_jobs)
    verdicts = judge_settings(sweep_jobs, varying_options)
    marks = list_study_marks(sweep_jobs)
    if is_tuning_sweep(sweep_jobs):
        _print_tuning(write_tuning(folder, sweep_jobs), folder, console)
    write_json(folder / VERDICTS_FILE, [{"setting": setting, **verdict} for setting, verdict in verdicts.items()])
    pair_overlaps, pair_correlations = compute_overlaps(sweep_jobs), compute_rank_correlations(sweep_jobs)
    table_rows = build_rows(sweep_jobs, pair_overlaps, pair_correlations)
    write_json(folder / "sweep.json", table_rows)
    with atomic_path(folder / "sweep.csv") as part:
        pd.DataFrame(table_rows, dtype=object).to_csv(part, index=False)
    for block in format_rows(folder, sweep_jobs, table_rows, console.width):
        console.print(block, soft_wrap=isinstance(block, Text))
    for mark in marks:
        console.print(Text(mark, "bold red"), soft_wrap=True)
    _print_verdicts(verdicts, console)
    seed_table = build_seed_table(sweep_jobs, varying_options)
    if seed_table is not None:
        _print_seed_table(seed_table, console)
    method_table = build_method_table(sweep_jobs, varying_options, reference)
    if method_table is not None:
        _print_method_table(method_table, console)
    compare_jobs(folder, sweep_jobs, console)
    page_path = write_sweep_page(
        folder, sweep_jobs, table_rows, pair_overlaps, pair_correlations, verdicts, method_table, marks
    )
    console.print(f"Heat maps, tables and their LaTeX, Markdown and CSV: {page_path}", soft_wrap=True)
    return table_rows


def _print_tuning(record: TuningRecord, folder: Path, console: Console) -> None:
    """Print the best setting of each method, and how to report on it."""
    table = Table("method", "settings tried", "best setting", "held-out loss", title="Tuning", title_justify="left")
    for method, settings in record.tried.items():
        best = record.best_setting(method)
        best_cells = (NOT_KNOWN, NOT_KNOWN) if best is None else (best.options, f"{best.heldout_loss:.4f}")
        table.add_row(*map(Text, (method, str(len(settings)), *best_cells)))
    console.print(table)
    console.print(
        Text(
            "Report on them with other seeds and data.study_part.use=reporting, naming this folder: "
            f"'report.tuning=[{folder}]'"
        ),
        soft_wrap=True,
    )


def _print_verdicts(verdicts: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """Print the verdict on each setting, and the command that would settle it where there is one setting."""
    if len(verdicts) == 1:
        (verdict,) = verdicts.values()
        console.print(Text(format_verdict(verdict), "bold"), soft_wrap=True)
        if verdict["command"] is not None:
            console.print(Text(f"To settle it ({format_command_time(verdict)}): {verdict['command']}"), soft_wrap=True)
        return
    table = Table("setting", "verdict", "seeds", "why", title="Verdicts", title_justify="left")
    for setting, verdict in verdicts.items():
        cells = (setting, verdict["verdict"], str(verdict["seeds"]), "; ".join(verdict["reasons"]))
        table.add_row(*map(Text, cells))
    console.print(table)
    if any(verdict["command"] is not None for verdict in verdicts.values()):
        console.print(Text(f"{VERDICTS_FILE} and the page have the commands that would settle them"), soft_wrap=True)


def _print_seed_table(seed_table: PaperTable, console: Console) -> None:
    """Print the table in columns that fit a narrow screen; the page and `tables/` have all of them."""
    table = Table("setting", "measure", "seeds", "value", "p (Holm)", title=seed_table.caption, title_justify="left")
    for line in seed_table.formatted.to_dict(orient="records"):
        interval = "" if line["low"] == NOT_KNOWN else f" [{line['low']}, {line['high']}]{line['shown']}"
        cells = (line["setting"], line["measure"], line["seeds"], line["value"] + interval, line["p (Holm)"])
        table.add_row(*map(Text, cells))
    console.print(table)
    console.print(Text(seed_table.note), soft_wrap=True)


def _print_method_table(method_table: PaperTable, console: Console) -> None:
    """Print the comparisons with the smallest p-values; the page and `tables/` have all of them."""
    table = Table("settings", "measure", "seeds", "difference", "p (Holm)", title=method_table.caption)
    table.title_justify = "left"
    sorted_table = replace(method_table, table=strongest_first(method_table.table)).formatted
    for line in sorted_table.head(COMPARISONS_PRINTED).to_dict(orient="records"):
        interval = "" if line["low"] == NOT_KNOWN else f" [{line['low']}, {line['high']}]{line['shown']}"
        settings = f"{line['setting']} − {line['minus']}"
        table.add_row(
            *map(Text, (settings, line["measure"], line["seeds"], line["difference"] + interval, line["p (Holm)"]))
        )
    console.print(table)
    more_count = len(sorted_table) - COMPARISONS_PRINTED
    more_words = f"{more_count} more with larger p are in tables/{method_table.name}.csv. " if more_count > 0 else ""
    console.print(Text(more_words + method_table.note), soft_wrap=True)


def build_rows(
    sweep_jobs: Sequence[SweepJob], pair_overlaps: np.ndarray, pair_correlations: np.ndarray
) -> list[dict[str, Any]]:
    """Build the row of each job, in the order of the jobs."""
    row_averages = zip(average_over_others(pair_overlaps), average_over_others(pair_correlations), strict=True)
    return [
        {**_build_row(sweep_job), "jaccard": mean_overlap, "rank_correlation": mean_correlation}
        for sweep_job, (mean_overlap, mean_correlation) in zip(sweep_jobs, row_averages, strict=True)
    ]


def _build_row(sweep_job: SweepJob) -> dict[str, Any]:
    selection_summary, planted_truth = sweep_job.selection, sweep_job.diagnostics.get("truth", {})
    row: dict[str, Any] = {"job": sweep_job.name, "asked_for": " ".join(sweep_job.overrides)}
    row.update({name: selection_summary.get(name) for name in ("scorer", "selector", "selected")})
    scores = sweep_job.score_values.sort_values().tolist()
    if scores:
        row.update(score_min=scores[0], score_median=scores[len(scores) // 2], score_max=scores[-1])
    row.update({name: value for name, value in sweep_job.diagnostics.items() if isinstance(value, int | float)})
    if planted_truth.get("auc"):
        row.update({f"auc_{name}": planted_truth["auc"]["scorer"][name] for name in ("value", "low", "high")})
    if "clean" in planted_truth.get("share", {}):
        row["clean_selected"] = planted_truth["share"]["clean"]["selected"]
    row["warnings"] = len(sweep_job.warnings)
    candidate = sweep_job.candidate_result
    row["heldout_loss"] = candidate.get("heldout_loss")
    if candidate.get("heldout_accuracy") is not None:
        row["heldout_accuracy"] = candidate["heldout_accuracy"]
    if "judge_agreement" in sweep_job.summary:
        row["judge_kappa"] = sweep_job.summary["judge_agreement"]["kappa"]
        row["judge_usable"] = sweep_job.has_usable_verdicts
    for baseline, sets in sweep_job.pairwise_scores.items():
        row[f"pws_{baseline}"] = sets["all"]["value"]
        row.update({f"pws_{baseline}_{end}": sets["all"][end] for end in ("low", "high")})
    row["seconds"] = round(sweep_job.stage_seconds, 1)
    row["saved"] = round(sweep_job.saved_seconds, 1)
    return row


def format_rows(
    folder: Path, sweep_jobs: Sequence[SweepJob], table_rows: Sequence[dict[str, Any]], width: int
) -> Iterator[Table | Text]:
    """Format what all jobs have in common as lines, and the table of what differs, as far as it fits.

    Args:
        folder: of the sweep.
        sweep_jobs: its jobs.
        table_rows: a row for each job.
        width: of the terminal, in characters.
    """
    shared_overrides = []
    if len(sweep_jobs) > 1:
        job_overrides = [set(sweep_job.overrides) for sweep_job in sweep_jobs]
        shared_overrides = [name for name in sweep_jobs[0].overrides if name in set.intersection(*job_overrides)]
    cells: dict[str, list[str]] = {name: [] for name in PRINTED_COLUMNS}
    for sweep_job, row in zip(sweep_jobs, table_rows, strict=True):
        own_overrides = " ".join(override for override in sweep_job.overrides if override not in shared_overrides)
        for name in PRINTED_COLUMNS:
            cells[name].append(_format_cell({**row, "asked_for": own_overrides}, name))
    known_cells = {name: column for name, column in cells.items() if any(column)}
    differing_names = [
        name for name, column in known_cells.items() if name == "job" or len(sweep_jobs) == 1 or len(set(column)) > 1
    ]
    shared_values = [
        f"{PRINTED_COLUMNS[name]} {column[0]}" for name, column in known_cells.items() if name not in differing_names
    ]
    if shared_overrides:
        shared_values.insert(0, " ".join(shared_overrides))
    if shared_values:
        yield Text.assemble(("All jobs  ", "bold"), "; ".join(shared_values))
    column_widths = [_measure_column(PRINTED_COLUMNS[name], known_cells[name], width // 3) for name in differing_names]
    fitting_count = max(2, int(np.searchsorted(np.cumsum(column_widths) + 1, width, side="right")))
    table = Table(title=Text(f"Sweep {folder}"), title_justify="left")
    for name in differing_names[:fitting_count]:
        table.add_column(PRINTED_COLUMNS[name])
    for job_cells in zip(*(known_cells[name] for name in differing_names[:fitting_count]), strict=True):
        table.add_row(*map(Text, job_cells))
    yield table
    left_out = [PRINTED_COLUMNS[name] for name in differing_names[fitting_count:]]
    if left_out:
        yield Text(f"  in sweep.csv, too: {', '.join(left_out)}", "dim")


def _measure_column(heading: str, column: Sequence[str], wrapped_width: int) -> int:
    """Return the characters that a column takes, border and padding included; longer cells are wrapped."""
    return 3 + min(wrapped_width, max(len(line) for cell in [heading, *column] for line in cell.split("\n")))


def _format_cell(row: dict[str, Any], column: str) -> str:
    if column == "pws" and not row.get("judge_usable", True):
        return f"unusable judge, kappa {row['judge_kappa']:.2f}"
    if column == "pws":
        baseline_names = [name[4:-4] for name in row if name.startswith("pws_") and name.endswith("_low")]
        return "\n".join(
            f"{name} {row[f'pws_{name}']:.2f} [{row[f'pws_{name}_low']:.2f}, {row[f'pws_{name}_high']:.2f}]"
            for name in baseline_names
            if row[f"pws_{name}"] is not None
        )
    value = row.get(column)
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) and column not in ("seconds", "saved") else str(value)
