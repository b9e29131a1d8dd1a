"""The page that compares two runs on the same rows: what both selected, what only one did, ranks and verdicts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gradfiltering.errors import UserError
from gradfiltering.reports.page.charts import Chart, ChartLabels, scatter_chart
from gradfiltering.reports.page.ensemble_health import measure_stability
from gradfiltering.reports.page.html_rendering import write_html
from gradfiltering.reports.page.provenance import list_options
from gradfiltering.reports.page.row_measurements import RowMeasurements, measure_rows
from gradfiltering.reports.page.row_reasons import RowExample, RowExplainer, make_example
from gradfiltering.reports.run_files import RunFiles
from gradfiltering.reports.verdict import read_verdict
from gradfiltering.reports.verdict_lines import VERDICT_CLASSES, format_verdict
from gradfiltering.runs.run_folder import REPORT_FILE
from gradfiltering.seeding import numpy_rng
from gradfiltering.statistics.rank_correlation import spearman_correlation

COMPARISON_FILE = "comparison.html"
ROWS_LISTED = 20
POINTS_DRAWN = 2500
# Options that say where and how a run works, and change none of its results.
LEFT_OUT_OPTIONS = ("run_dir", "cache", "logger", "progress", "report", "plan", "hydra", "memory", "log_level")


@dataclass(frozen=True)
class ComparedRun:
    """A run with its rows.

    Attributes:
        letter: A or B, by which the page calls it.
        run_files: its folder.
        measured_rows: its rows.
        explainer: says why a row went in or did not.
    """

    letter: str
    run_files: RunFiles
    measured_rows: RowMeasurements
    explainer: RowExplainer

    @property
    def selected(self) -> np.ndarray:
        """[N] bool, True for the rows that went in."""
        assert self.measured_rows.selected is not None
        return self.measured_rows.selected


@dataclass(frozen=True)
class ListedRow:
    """A row that only one of the runs selected.

    Attributes:
        example: the row, with the reason of the run that selected it.
        other_reason: of the run that did not.
    """

    example: RowExample
    other_reason: str


def write_comparison(first_folder: Path, second_folder: Path, page_path: Path | None = None) -> Path:
    """Write the page that compares two runs, from their folders alone.

    Args:
        first_folder: of run A.
        second_folder: of run B.
        page_path: the page; None for `comparison.html` in the folder of run B.

    Returns:
        The page.

    Raises:
        UserError: a folder holds no run, a run selected no rows, or the runs are not of the same rows.
    """
    first, second = (_read_run(letter, folder) for letter, folder in (("A", first_folder), ("B", second_folder)))
    _check_same_rows(first.run_files, second.run_files)
    only_first, only_second = first.selected & ~second.selected, second.selected & ~first.selected
    chart = draw_ranks(first, second)
    page_path = page_path or second_folder / COMPARISON_FILE
    context = {
        **count_overlap(first.selected, second.selected),
        "rank_correlation": _correlate(first.measured_rows, second.measured_rows),
        "runs": [_describe_run(run, page_path) for run in (first, second)],
        "options": compare_options(first.run_files, second.run_files),
        "lists": [
            ("A", "B", int(only_first.sum()), list_rows(first, second, only_first)),
            ("B", "A", int(only_second.sum()), list_rows(second, first, only_second)),
        ],
        "chart_names": [] if chart is None else [chart.name],
    }
    charts = [] if chart is None else [chart]
    write_html(page_path, "comparison.html", context, charts, styles=["report.css"])
    return page_path


def count_overlap(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Count the rows that both, or only one, of two selections hold, [N] bool each.

    Returns:
        `both`, `only_first`, `only_second`, `jaccard`, and `expected`: the rows that two selections of these sizes
        have in common by chance alone.
    """
    both, union = int((first & second).sum()), int((first | second).sum())
    return {
        "both": both,
        "only_first": int((first & ~second).sum()),
        "only_second": int((second & ~first).sum()),
        "jaccard": both / union if union else 1.0,
        "expected": float(first.sum() * second.sum() / len(first)),
    }


def compare_options(first: RunFiles, second: RunFiles) -> pd.DataFrame:
    """List the options that differ: `A` and `B` by the option's name."""
    values = {letter: list_options(run_files)["value"] for letter, run_files in (("A", first), ("B", second))}
    table = pd.DataFrame(values).fillna("–")
    is_shown = np.array([str(name).partition(".")[0] not in LEFT_OUT_OPTIONS for name in table.index], dtype=bool)
    return table[(table["A"] != table["B"]) & is_shown]


def list_rows(run: ComparedRun, other_run: ComparedRun, is_listed: np.ndarray) -> list[ListedRow]:
    """List the best of the rows that only `run` selected, with the reasons of both runs."""
    ranks = np.nan_to_num(run.measured_rows.values("rank"), nan=np.inf)
    row_ids = np.flatnonzero(is_listed)
    best_ids = row_ids[np.argsort(ranks[row_ids], kind="stable")][:ROWS_LISTED].tolist()
    return [
        ListedRow(make_example(run.explainer, run.run_files, row_id), other_run.explainer.explain(row_id))
        for row_id in best_ids
    ]


def draw_ranks(first: ComparedRun, second: ComparedRun) -> Chart | None:
    """Draw the ranks of the rows in both runs; None where one of them ranks nothing."""
    ranks = pd.DataFrame({"x": first.measured_rows.values("rank"), "y": second.measured_rows.values("rank")})
    ranks["hover"] = [
        f"row {row_id}, rank {x:.0f} in A and {y:.0f} in B" for row_id, x, y in ranks.itertuples(name=None)
    ]
    ranks = ranks.dropna()
    if len(ranks) < 2:
        return None
    count = len(ranks)
    if count > POINTS_DRAWN:
        ranks = ranks.sample(POINTS_DRAWN, random_state=numpy_rng(first.run_files.seed, "ranks shown"))
    sample_text = f" Drawn: {len(ranks):,} of {count:,} rows, at random." if len(ranks) < count else ""
    chart_labels = ChartLabels(
        name="ranks",
        question="Do the two runs put the rows into the same order?",
        reading=f"On the dotted line a row has the same rank in both; 1 is the best.{sample_text}",
        x_title="rank in A",
        y_title="rank in B",
    )
    return scatter_chart(chart_labels, ranks, diagonal=True, height=430)


def _read_run(letter: str, folder: Path) -> ComparedRun:
    run_files = RunFiles(folder)
    measured_rows = measure_rows(run_files)
    if measured_rows.selected is None:
        raise UserError(f"{folder} selected no rows; compare runs that got as far as until=select")
    stability = measure_stability(run_files)
    reselected_share = None
    if stability is not None and stability.reselected_share is not None:
        reselected_share = np.full(len(measured_rows), np.nan)
        reselected_share[stability.example_ids] = stability.reselected_share
    return ComparedRun(letter, run_files, measured_rows, RowExplainer(run_files, measured_rows, reselected_share))


def _check_same_rows(first: RunFiles, second: RunFiles) -> None:
    fingerprints = [run_files.data_facts.get("fingerprint") for run_files in (first, second)]
    are_known_to_differ = None not in fingerprints and fingerprints[0] != fingerprints[1]
    if first.row_count != second.row_count or are_known_to_differ:
        raise UserError(
            f"{first.path} and {second.path} are runs on different rows ({first.row_count:,} and "
            f"{second.row_count:,}); compare runs on the same data"
        )


def _correlate(first: RowMeasurements, second: RowMeasurements) -> float | None:
    """Correlate the ranks over the rows that both scored."""
    ranks = np.stack([first.values("rank"), second.values("rank")])
    in_both = np.isfinite(ranks).all(0)
    return spearman_correlation(ranks[0, in_both], ranks[1, in_both])


def _describe_run(run: ComparedRun, page_path: Path) -> Mapping[str, Any]:
    verdict = read_verdict(run.run_files)
    selection = run.run_files.selection
    report_path = run.run_files.path / REPORT_FILE
    is_beside = report_path.is_file() and report_path.parent.resolve() == page_path.parent.resolve()
    return {
        "letter": run.letter,
        "name": "/".join(run.run_files.path.resolve().parts[-2:]),
        "method": ", ".join(filter(None, (selection.get("selector"), selection.get("scorer")))),
        "selected": int(run.selected.sum()),
        "link": REPORT_FILE if is_beside else (report_path.resolve().as_uri() if report_path.is_file() else None),
        "verdict": format_verdict(verdict),
        "verdict_class": VERDICT_CLASSES.get(verdict["verdict"], ""),
    }
