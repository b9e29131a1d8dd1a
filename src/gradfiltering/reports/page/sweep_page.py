"""The page of a sweep, `sweep.html`: heat maps, the paper's tables, curves, and the agreement of every two jobs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gradfiltering.reports.method_comparisons import METHOD_TABLE
from gradfiltering.reports.number_formats import format_number
from gradfiltering.reports.page import sweep_answer
from gradfiltering.reports.page.charts import write_figures
from gradfiltering.reports.page.heat_maps import (
    COMPANY_KEYS,
    NO_JOB,
    NOT_MEASURED,
    HeatCell,
    Metric,
    build_heat_maps,
    build_pair_cells,
    list_metrics,
)
from gradfiltering.reports.page.html_rendering import write_html
from gradfiltering.reports.page.sweep_curves import draw_sweep_curves
from gradfiltering.reports.paper_tables import PaperTable, build_ablation_table, build_main_table
from gradfiltering.reports.seed_tables import SEED_TABLE, build_seed_table
from gradfiltering.reports.sweep_jobs import SweepJob, find_varying_options, read_planned_values
from gradfiltering.reports.verdict import VERDICT_TABLE, build_verdict_table
from gradfiltering.reports.verdict_lines import VERDICT_CLASSES, format_command_time, format_verdict
from gradfiltering.runs.run_folder import FIGURES, REPORT_FILE

SWEEP_FILE = "sweep.html"
TABLES_NAME = "tables"
MOST_JOBS_PAIRED = 64
LABEL_COLUMNS = ("method", "M", "snapshots", "options")
LABEL_NAMES = ("method", "M", "snapshots", "other options")
JOB_COLUMNS = ["job", "asked_for", "selected", "heldout_loss", "noise", "jaccard", "rank_correlation", "seconds"]
TABLE_LINKS = {
    VERDICT_TABLE: "Verdicts",
    SEED_TABLE: "Over seeds",
    METHOD_TABLE: "Methods",
    "main": "Main table",
    "ablation": "Ablation",
}
TABLE_HEADINGS = {
    VERDICT_TABLE: "May the selected rows be used?",
    METHOD_TABLE: "Which settings differ, seed by seed?",
    SEED_TABLE: "What is left when all chance is counted?",
    "main": "The paper's main table",
    "ablation": "Ablation: other scores instead of G-SNR",
}
PAIR_QUESTIONS = {
    "jaccard": ("Which jobs selected the same rows?", "Jaccard index of the selected rows"),
    "rank_correlation": ("Which jobs rank the rows alike?", "Spearman's correlation of the scores"),
}


def write_sweep_page(
    folder: Path,
    sweep_jobs: Sequence[SweepJob],
    sweep_rows: Sequence[Mapping[str, Any]],
    overlaps: np.ndarray,
    correlations: np.ndarray,
    verdicts: Mapping[str, Mapping[str, Any]],
    method_table: PaperTable | None,
    marks: Sequence[str],
) -> Path:
    """Write the page, `tables/` with LaTeX, Markdown and CSV of every table, and `figures/` where jobs have them too.

    Args:
        folder: of the sweep.
        sweep_jobs: in their order.
        sweep_rows: one for each job, as in `sweep.json`.
        overlaps, correlations: [J, J] Jaccard of the selected rows, and Spearman's correlation of the scores.
        verdicts: on each setting.
        method_table: the settings against each other, where they have seeds in common.
        marks: what stands between the results and a claim, a sentence each.
    """
    varying_options = find_varying_options(sweep_jobs)
    table = _tabulate_jobs(sweep_jobs, sweep_rows, varying_options)
    measured_columns = set(table.columns[table.notna().any()])
    shown_metrics = [metric for metric in list_metrics(table) if metric.key in measured_columns]
    metric_keys = [metric.key for metric in shown_metrics]
    table[metric_keys] = table[metric_keys].astype(float)
    shown_tables = _build_shown_tables(sweep_jobs, varying_options, verdicts, method_table, marks)
    for paper_table in (*shown_tables, *_list_plain_tables(table, metric_keys, overlaps, correlations)):
        paper_table.write(folder / TABLES_NAME)
    curve_charts = draw_sweep_curves(sweep_jobs, varying_options)
    if any(sweep_job.options("report").get("figures") for sweep_job in sweep_jobs):
        write_figures(curve_charts, folder / FIGURES)
    context: dict[str, Any] = {
        "name": folder.resolve().name,
        "marks": marks,
        "verdicts": _describe_verdicts(verdicts),
        "count": len(sweep_jobs),
        "best": [_describe_best(metric, table) for metric in shown_metrics if metric.best_words],
        "curves": [chart.name for chart in curve_charts],
        "tables": shown_tables,
        "table_links": TABLE_LINKS,
        "table_headings": TABLE_HEADINGS,
        "pairs": _build_pair_maps(overlaps, correlations) if len(sweep_jobs) <= MOST_JOBS_PAIRED else [],
        "unusable_count": sum(not sweep_job.has_usable_verdicts for sweep_job in sweep_jobs),
    }
    context |= _describe_heat_maps(build_heat_maps(table, shown_metrics, read_planned_values(folder)))
    context |= _describe_jobs(sweep_jobs, table, shown_metrics)
    context |= _describe_answer(sweep_jobs, table, shown_metrics, verdicts)
    page_path = folder / SWEEP_FILE
    write_html(page_path, "sweep.html", context, curve_charts, styles=["sweep.css"])
    return page_path


def _build_shown_tables(
    sweep_jobs: Sequence[SweepJob],
    varying_options: set[str],
    verdicts: Mapping[str, Mapping[str, Any]],
    method_table: PaperTable | None,
    marks: Sequence[str],
) -> list[PaperTable]:
    """Build the tables of the page that this sweep has results for, each with the marks under it."""
    paper_tables = [
        build_verdict_table(verdicts) if verdicts else None,
        build_seed_table(sweep_jobs, varying_options),
        method_table,
        build_main_table(sweep_jobs),
        build_ablation_table(sweep_jobs, varying_options),
    ]
    return [
        replace(paper_table, note=" ".join([paper_table.note, *marks]))
        for paper_table in paper_tables
        if paper_table is not None
    ]


def _build_pair_maps(overlaps: np.ndarray, correlations: np.ndarray) -> list[tuple[str, str, list[list[HeatCell]]]]:
    """Build the question, the measure and the cells of each map of pairs of jobs."""
    pair_values = {"jaccard": overlaps, "rank_correlation": correlations}
    return [
        (*PAIR_QUESTIONS[name], build_pair_cells(values))
        for name, values in pair_values.items()
        if np.isfinite(values).any()
    ]


def _describe_heat_maps(heat_maps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Describe the heat maps for the page: those of a job's own measures, and those that compare it with the others."""
    first_parts = heat_maps[0]["parts"] if heat_maps else []
    first_texts = [cell.text for part in first_parts for _, cells in part["rows"] for cell in cells]
    return {
        "heat_maps": [heat_map for heat_map in heat_maps if heat_map["metric"].key not in COMPANY_KEYS],
        "company_maps": [heat_map for heat_map in heat_maps if heat_map["metric"].key in COMPANY_KEYS],
        "missing_count": first_texts.count(NO_JOB),
        "unmeasured_count": first_texts.count(NOT_MEASURED),
    }


def _tabulate_jobs(
    sweep_jobs: Sequence[SweepJob], sweep_rows: Sequence[Mapping[str, Any]], varying_options: set[str]
) -> pd.DataFrame:
    """Make a table with a row for each job: what `sweep.json` has, noise, and what tells the jobs apart."""
    table = pd.DataFrame(sweep_rows)
    clean_share = table["clean_selected"] if "clean_selected" in table else pd.Series(np.nan, table.index)
    table["noise"] = 1 - clean_share.astype(float)
    unusable_jobs = [not sweep_job.has_usable_verdicts for sweep_job in sweep_jobs]
    table.loc[unusable_jobs, [name for name in table.columns if name.startswith("pws_")]] = np.nan
    table["method"] = [sweep_job.method for sweep_job in sweep_jobs]
    table["M"] = [sweep_job.member_count for sweep_job in sweep_jobs]
    table["snapshots"] = [sweep_job.epoch_pair for sweep_job in sweep_jobs]
    table["options"] = [sweep_job.other_options(varying_options) for sweep_job in sweep_jobs]
    return table


def _describe_verdicts(verdicts: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Describe the verdict on each setting for the page."""
    return [
        {
            "setting": setting,
            "sentence": format_verdict(verdict),
            "class": VERDICT_CLASSES.get(verdict["verdict"], ""),
            "command": verdict["command"],
            "time": format_command_time(verdict),
        }
        for setting, verdict in verdicts.items()
    ]


def _describe_jobs(
    sweep_jobs: Sequence[SweepJob], table: pd.DataFrame, shown_metrics: Sequence[Metric]
) -> dict[str, Any]:
    """Describe the table of jobs for the page, without the columns in which they do not differ."""
    shown_labels = [
        label_index
        for label_index, name in enumerate(LABEL_COLUMNS)
        if table[name].nunique() > 1 or (name == "method" and len(table) == 1)
    ]
    number_columns = [
        (metric.short_name, [format_number(value) for value in table[metric.key]]) for metric in shown_metrics
    ]
    number_columns += [(name, [str(value) for value in table[name]]) for name in ("warnings", "seconds")]
    constant_columns = [(name, cells[0]) for name, cells in number_columns if len(cells) > 1 and len(set(cells)) == 1]
    differing_columns = [(name, cells) for name, cells in number_columns if (name, cells[0]) not in constant_columns]
    return {
        "label_names": [LABEL_NAMES[label_index] for label_index in shown_labels],
        "columns": [name for name, _ in differing_columns],
        "constant_columns": constant_columns,
        "jobs": [
            {
                "name": sweep_job.name,
                "link": f"{sweep_job.name}/{REPORT_FILE}" if (sweep_job.path / REPORT_FILE).is_file() else None,
                "labels": [table[LABEL_COLUMNS[label_index]].iloc[number] for label_index in shown_labels],
                "numbers": [cells[number] for _, cells in differing_columns],
            }
            for number, sweep_job in enumerate(sweep_jobs)
        ],
    }


def _describe_answer(
    sweep_jobs: Sequence[SweepJob],
    table: pd.DataFrame,
    shown_metrics: Sequence[Metric],
    verdicts: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Describe what the page opens with: best setting, factor that mattered, costs."""
    leading_metric = next((metric for metric in shown_metrics if metric.best_words), None)
    factors: list[sweep_answer.Factor] = []
    factors_sentence = ""
    if leading_metric is not None:
        factors = sweep_answer.rank_factors(
            sweep_jobs, table, leading_metric.key, lower_is_better=leading_metric.lower_is_better
        )
        factors_sentence = sweep_answer.describe_factors(factors, leading_metric.phrase)
    return {
        "best_setting": sweep_answer.find_best_setting(verdicts),
        "verdict_counts": Counter(verdict["verdict"] for verdict in verdicts.values()),
        "factors": factors,
        "factors_sentence": factors_sentence,
        "factors_metric": leading_metric,
        "costs_sentence": sweep_answer.describe_costs(table),
    }


def _describe_best(metric: Metric, table: pd.DataFrame) -> tuple[str, str, str]:
    """Describe the best value of a metric: its label, the value, and the job's settings."""
    values = table[metric.key]
    sweep_job = table.iloc[int(values.argmin() if metric.lower_is_better else values.argmax())]
    options = f", {sweep_job['options']}" if sweep_job["options"] else ""
    settings = f"{sweep_job['method']}, M = {sweep_job['M']}, {sweep_job['snapshots']}{options}"
    settings += f" (job {sweep_job['job']})"
    return metric.best_words, f"{sweep_job[metric.key]:.3f}", settings


def _list_plain_tables(
    table: pd.DataFrame, metric_keys: Sequence[str], overlaps: np.ndarray, correlations: np.ndarray
) -> list[PaperTable]:
    """List the tables that are written and not shown: jobs, the values behind the heat maps, and pairs of jobs."""
    pws_columns = [name for name in table.columns if name.startswith("pws_")]
    job_columns = [name for name in (*JOB_COLUMNS[:3], *pws_columns, *JOB_COLUMNS[3:]) if name in table]
    first, second = np.triu_indices(len(table), k=1)
    job_names = table["job"].to_numpy()
    pair_values = {"job": job_names[first], "other": job_names[second], "jaccard": overlaps[first, second]}
    pair_values["rank_correlation"] = correlations[first, second]
    heat_columns = ["method", "M", "snapshots", "options", "job", *metric_keys]
    pair_caption = "Agreement of the selections and rankings of every two jobs."
    return [
        PaperTable("jobs", "Every job of the sweep.", table[job_columns], 2),
        PaperTable("heatmaps", "The values behind the heat maps.", table[heat_columns], 5),
        PaperTable("pairs", pair_caption, pd.DataFrame(pair_values), 2),
    ]
