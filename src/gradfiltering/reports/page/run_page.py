"""The page of a run, `report.html`, and its figure files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gradfiltering.reports.data_lines import describe_data, proxy_knows_rows
from gradfiltering.reports.judge_lines import describe_judge, verdicts_are_usable
from gradfiltering.reports.page import (
    answer_section,
    convergence_curves,
    ensemble_health,
    glossary,
    provenance,
    row_explorer,
    row_reasons,
    spread,
    training_savings,
)
from gradfiltering.reports.page.charts import Chart, write_figures
from gradfiltering.reports.page.drawn_files import open_run_files
from gradfiltering.reports.page.html_rendering import write_html
from gradfiltering.reports.page.row_measurements import RowMeasurements, measure_rows
from gradfiltering.reports.page.selection_charts import draw_selection
from gradfiltering.reports.page.settings import PageSettings
from gradfiltering.reports.plan_table import format_seconds
from gradfiltering.reports.references import format_bibtex
from gradfiltering.reports.run_files import RunFiles
from gradfiltering.reports.verdict import read_verdict
from gradfiltering.reports.verdict_lines import VERDICT_CLASSES, VERDICT_MEANINGS, format_command_time, format_verdict
from gradfiltering.runs.run_folder import FIGURES, REPORT_FILE


def write_page(run_dir: Path, row_limit: int | str | None = None, figures: bool = True) -> Path:
    """Write the page of a run, from its folder alone.

    Args:
        run_dir: the run folder.
        row_limit: number of rows the page holds with their text, or `all`; None for what the run's configuration says.
        figures: whether to write the charts as PNG and SVG files too.

    Returns:
        The page.

    Raises:
        UserError: the folder holds no run, or `row_limit` is no number.
    """
    if row_limit is None:
        row_limit = RunFiles(run_dir).options("report").get("rows", PageSettings.rows)
    elif isinstance(row_limit, str) and row_limit.isdecimal():
        row_limit = int(row_limit)
    settings = PageSettings(rows=row_limit, figures=figures)  # type: ignore[arg-type]  # refuses other texts
    run_files = open_run_files(run_dir, settings.rows)
    measured_rows = measure_rows(run_files)
    ranking_stability = ensemble_health.measure_stability(run_files)
    drawn_sections = _draw_sections(run_files, measured_rows, ranking_stability)
    all_charts = [chart for charts in drawn_sections.values() for chart in charts]
    sample = row_explorer.sample_rows(run_files, measured_rows, settings.rows)
    reselected_share = _spread_reselected_share(ranking_stability, measured_rows)
    explainer = row_reasons.RowExplainer(run_files, measured_rows, reselected_share)
    context = {
        **_collect_context(run_files, measured_rows, sample),
        "last_selected_rank": explainer.last_selected_rank,
        "examples": row_reasons.pick_examples(explainer, run_files, measured_rows),
        "groups": {name: [chart.name for chart in charts] for name, charts in drawn_sections.items()},
        "figures": settings.figures,
    }
    row_data = row_explorer.collect_row_data(run_files, measured_rows, sample, reselected_share)
    if measured_rows.selected is not None:
        row_data["why"] = [explainer.explain(row_id) for row_id in sample.example_ids.tolist()]
    page_path = run_files.path / REPORT_FILE
    page_data = {"rows": row_data}
    write_html(
        page_path,
        "report.html",
        context,
        all_charts,
        page_data=page_data,
        styles=["report.css"],
        scripts=["explorer.js"],
    )
    if settings.figures:
        write_figures(all_charts, run_files.path / FIGURES)
    return page_path


def _draw_sections(
    run_files: RunFiles, measured_rows: RowMeasurements, ranking_stability: ensemble_health.RankingStability | None
) -> dict[str, list[Chart]]:
    """Draw the charts of each section of the page; a chart without values is left out."""
    drawn_rows = measured_rows.drawn
    is_selected = drawn_rows.selected
    selected_share = None if is_selected is None or not len(is_selected) else float(is_selected.mean())
    section_charts: dict[str, list[Chart | None]] = {
        "answer": [answer_section.draw_winning_scores(run_files)],
        "selection": [*draw_selection(drawn_rows, run_files.diagnostics, run_files.seed)],
        "health": [
            ensemble_health.draw_trajectories(run_files),
            ensemble_health.draw_collapse(run_files),
            ensemble_health.draw_heldout(run_files),
            ensemble_health.draw_stability(ranking_stability, selected_share) if ranking_stability else None,
        ],
        "convergence": [*convergence_curves.draw_convergence(run_files)],
    }
    return {name: [chart for chart in charts if chart] for name, charts in section_charts.items()}


def _spread_reselected_share(
    ranking_stability: ensemble_health.RankingStability | None, measured_rows: RowMeasurements
) -> np.ndarray | None:
    """Return the [N] share of resampled ensembles that select each row, NaN where unknown; None where none is known."""
    if ranking_stability is None or ranking_stability.reselected_share is None:
        return None
    reselected_share = np.full(len(measured_rows), np.nan)
    reselected_share[measured_rows.find_positions(ranking_stability.example_ids)] = ranking_stability.reselected_share
    return reselected_share


def _collect_context(run_files: RunFiles, rows: RowMeasurements, sample: row_explorer.RowSample) -> Mapping[str, Any]:
    """Collect the words and tables of the template."""
    verdict = read_verdict(run_files)
    checks = answer_section.check_diagnostics(run_files)
    return {
        "name": "/".join(run_files.path.resolve().parts[-2:]),
        "data_lines": describe_data(run_files.summary),
        "headline": answer_section.format_headline(run_files),
        "proxy_knows_rows": proxy_knows_rows(run_files.diagnostics),
        "judge_line": describe_judge(run_files.summary),
        "judge_is_usable": verdicts_are_usable(run_files.summary),
        "verdict": verdict,
        "verdict_sentence": format_verdict(verdict),
        "verdict_meaning": VERDICT_MEANINGS[verdict["verdict"]],
        "savings": training_savings.estimate_savings(run_files),
        "spreads": spread.compare_spread(run_files, rows.drawn),
        "terms": glossary.TERMS,
        "checks_sentence": answer_section.describe_checks(run_files, checks),
        "verdict_class": VERDICT_CLASSES.get(verdict["verdict"], ""),
        "verdict_time": format_command_time(verdict),
        "verdicts": answer_section.summarise_verdicts(run_files),
        "judge": answer_section.tabulate_judge(run_files),
        "metrics": answer_section.tabulate_metrics(run_files),
        "costs": answer_section.tabulate_costs(run_files),
        "checks": checks,
        "warnings": [answer_section.split_warning(text) for text in run_files.warnings],
        "missing_parts": answer_section.list_missing_parts(run_files),
        "selection": run_files.selection,
        "targets": run_files.target_results,
        "spent": format_seconds(run_files.stage_seconds),
        "saved_seconds": run_files.saved_seconds,
        "truth": run_files.diagnostics.get("truth"),
        "row_count": run_files.row_count,
        "drawn_count": None if run_files.is_whole else len(rows.drawn),
        "sample": sample,
        "has_texts": run_files.row_texts is not None,
        "has_selection": rows.selected is not None,
        "length_unit": rows.length_unit,
        "has_lengths": bool(rows.table["length"].notna().any()),
        "has_sources": rows.sources is not None,
        "has_kinds": rows.kinds is not None,
        "has_unscored": bool(run_files.unscored_reasons),
        "member_correlations": ensemble_health.correlate_members(run_files),
        **_tabulate_convergence(run_files),
        "facts": provenance.list_facts(run_files),
        "options": provenance.list_options(run_files),
        "command": provenance.format_command(run_files),
        "bibtex": format_bibtex(run_files.config, run_files.summary),
    }


def _tabulate_convergence(run_files: RunFiles) -> dict[str, Any]:
    curve_comparison = convergence_curves.compare_convergence(run_files)
    if curve_comparison is None:
        return {"convergence": None, "loss_level": None}
    table, level = curve_comparison
    shown_table = pd.DataFrame({"final held-out loss": table["final"].map(answer_section.format_number)})
    for axis_name, end in table.attrs["stretch_ends"].items():
        mean_losses = table[f"mean {axis_name}"].map(answer_section.format_number)
        shown_table[f"mean loss over {end:,.0f} {axis_name}"] = mean_losses
        shown_table[f"{axis_name} to reach"] = [
            f"{value:,.0f}" if np.isfinite(value) else "never" for value in table[f"reach {axis_name}"]
        ]
    return {"convergence": shown_table, "loss_level": level}
