"""Writes `sweep.html`: heat maps over scorer, M and snapshots, the paper's tables, overlap of every two jobs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from gradfiltering.reports.page.figures import FIGURES, write_figures
from gradfiltering.reports.page.render import render
from gradfiltering.reports.page.sweep_curves import curve_charts
from gradfiltering.reports.paper_tables import SheetTable, ablation_table, main_table
from gradfiltering.reports.sweep_jobs import Job, planned, varying
from gradfiltering.runs.cache import atomic_path

PAGE = "sweep.html"
TABLES = "tables"
MOST_PAIRED = 64  # jobs whose pairs are shown one by one
NO_JOB, NOT_MEASURED = "no job", "not measured"
PAIRS = {
    "jaccard": ("Which jobs chose the same rows?", "Jaccard index of the chosen rows"),
    "rank_correlation": ("Which jobs rank the rows alike?", "Spearman's correlation of the scores"),
}


@dataclass(frozen=True)
class Metric:
    """What a heat map shows.

    Attributes:
        key: in the rows of the sweep.
        short: its column in the table of jobs.
        question: in plain words.
        reading: how to read it.
        best: the better end, or "" where neither is.
        middle: the value that divides better from worse, None where there is none.
    """

    key: str
    short: str
    question: str
    reading: str
    best: str = ""
    middle: float | None = None


@dataclass(frozen=True)
class Cell:
    """One cell of a heat map.

    Attributes:
        text: the value, or why there is none.
        level: strength of the colour, 0 to 100; None for a cell without a value.
        side: `up` or `down` of the middle.
        jobs: whose it is.
    """

    text: str
    level: int | None
    side: str
    jobs: str


def write_sweep_page(
    folder: Path,
    jobs: Sequence[Job],
    rows: Sequence[Mapping[str, Any]],
    overlap: np.ndarray,
    correlation: np.ndarray,
) -> Path:
    """Writes the page, `tables/` with LaTeX, Markdown and CSV of every table, and `figures/` where jobs have them too.

    Args:
        folder: of the sweep.
        jobs: in their order.
        rows: one a job, as in `sweep.json`.
        overlap: [J, J] Jaccard of the chosen rows.
        correlation: [J, J] of the scores.

    Returns:
        The page.
    """
    options = varying(jobs)
    rows = [{**row, "noise": None if row.get("clean_selected") is None else 1 - row["clean_selected"]} for row in rows]
    metrics = [metric for metric in _metrics(rows) if any(row.get(metric.key) is not None for row in rows)]
    grids = _grids(jobs, rows, metrics, planned(folder), options)
    tables = [one for one in (main_table(jobs), ablation_table(jobs, options)) if one is not None]
    plain = [_job_table(rows), _grid_table(jobs, rows, metrics, options), _pair_table(jobs, overlap, correlation)]
    for table in (*tables, *plain):
        table.write(folder / TABLES)
    charts = curve_charts(jobs, options)
    if any(job.config.get("report", {}).get("figures") for job in jobs):
        write_figures(charts, folder / FIGURES)
    pairs = {"jaccard": overlap, "rank_correlation": correlation}
    known = {name: values for name, values in pairs.items() if np.isfinite(values).any() and len(jobs) <= MOST_PAIRED}
    context = {
        "name": folder.resolve().name,
        "count": len(jobs),
        "best": [one for metric in metrics if (one := _best(metric, jobs, rows, options))],
        "grids": grids,
        "curves": [chart.name for chart in charts],
        "tables": tables,
        "pairs": [(*PAIRS[name], _pair_cells(values)) for name, values in known.items()],
        "columns": [metric.short for metric in metrics],
        "others": any(job.rest(options) for job in jobs),
        "jobs": [_job_line(folder, job, row, metrics, options) for job, row in zip(jobs, rows, strict=True)],
        "missing": sum(cell.text == NO_JOB for cell in _first_cells(grids)),
        "unmeasured": sum(cell.text == NOT_MEASURED for cell in _first_cells(grids)),
    }
    text = render("sweep.html", context, charts, styles=["sweep.css"])
    with atomic_path(folder / PAGE) as part:
        part.write_text(text, encoding="utf-8", newline="\n")
    return folder / PAGE


def _metrics(rows: Sequence[Mapping[str, Any]]) -> list[Metric]:
    against = dict.fromkeys(k[4:-4] for row in rows for k in row if k.startswith("pws_") and k.endswith("_low"))
    return [
        *(
            Metric(f"pws_{name}", f"PWS, {name}", f"Which settings win against {name}?",
                   "Pairwise winning score of the candidate: 1 is on a par, 2 wins every prompt, 0 none.", "high", 1.0)
            for name in against
        ),
        Metric("heldout_loss", "held-out loss", "Which subset teaches most?",
               "Held-out loss of the candidate in nats per response token; lower is better.", "low"),
        Metric("noise", "noise", "Which settings let planted defects through?",
               "Share of planted rows among the chosen; lower is better.", "low"),
        Metric("jaccard", "Jaccard", "How much does a choice share with the others?",
               "Mean Jaccard index of the chosen rows with those of every other job; 1 is the same rows."),
        Metric("rank_correlation", "rank corr.", "How alike is the ranking to the others?",
               "Mean Spearman correlation of the scores with those of every other job.", middle=0.0),
    ]  # fmt: skip


def _place(job: Job, options: set[str]) -> tuple[str, str, str, str]:
    """Other options, snapshots, method and M of a job."""
    members = "–" if job.members is None else str(job.members)
    return job.rest(options), job.epochs or "–", job.method, members


def _grids(
    jobs: Sequence[Job],
    rows: Sequence[Mapping[str, Any]],
    metrics: Sequence[Metric],
    asked: Mapping[str, list[str]],
    options: set[str],
) -> list[dict[str, Any]]:
    """For each metric, for each set of other options and pair of snapshots, a table of method by M."""
    places = [_place(job, options) for job in jobs]
    methods = list(dict.fromkeys([*(one[2] for one in places), *asked.get("scorer", [])]))
    pairs = sorted({*(one[1] for one in places), *asked.get("epochs", [])})
    members = sorted({*(one[3] for one in places), *asked.get("ensemble.m", [])}, key=_number)
    found = []
    for metric in metrics:
        held: dict[tuple[str, ...], list[tuple[str, float | None]]] = {}
        for place, job, row in zip(places, jobs, rows, strict=True):
            held.setdefault(place, []).append((job.path.name, row.get(metric.key)))
        scale = _scale(metric, [row[metric.key] for row in rows if row.get(metric.key) is not None])
        parts = [
            {
                "rest": rest,
                "pair": pair,
                "columns": members,
                "rows": [
                    (method, [_cell(held.get((rest, pair, method, m)), metric, scale) for m in members])
                    for method in methods
                ],
            }
            for rest in dict.fromkeys(one[0] for one in places)
            for pair in pairs
        ]
        found.append({"metric": metric, "parts": parts, "ends": _ends(metric, scale)})
    return found


def _first_cells(grids: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """The cells of the first heat map, which has one for each combination."""
    return [cell for grid in grids[:1] for part in grid["parts"] for _, cells in part["rows"] for cell in cells]


def _scale(metric: Metric, values: Sequence[float]) -> tuple[float, float]:
    """The values at which the colour is weakest and strongest."""
    if metric.middle is not None:
        return metric.middle, max(abs(value - metric.middle) for value in values) or 1.0
    # Strong colour is the better end in every map, so that one glance finds the best in each.
    return (max(values), min(values)) if metric.best == "low" else (min(values), max(values))


def _ends(metric: Metric, scale: tuple[float, float]) -> tuple[str, str]:
    if metric.middle is not None:
        return f"{metric.middle - scale[1]:.3g}", f"{metric.middle + scale[1]:.3g}"
    return f"{scale[0]:.3g}", f"{scale[1]:.3g}"


def _cell(held: Sequence[tuple[str, float | None]] | None, metric: Metric, scale: tuple[float, float]) -> Cell:
    if not held:
        return Cell(NO_JOB, None, "", "")
    names = ", ".join(name for name, _ in held)
    known = [value for _, value in held if value is not None]
    if not known:
        return Cell(NOT_MEASURED, None, "", names)
    value = fmean(known)
    if metric.middle is not None:
        side = "up" if value >= metric.middle else "down"
        return Cell(_words(value), _percent(abs(value - metric.middle) / scale[1]), side, names)
    spread = scale[1] - scale[0]
    return Cell(_words(value), _percent((value - scale[0]) / spread if spread else 0.0), "up", names)


def _pair_cells(values: np.ndarray) -> list[list[Cell]]:
    return [
        [
            Cell(NOT_MEASURED, None, "", "")
            if not math.isfinite(value)
            else Cell(f"{value:.2f}".replace("0.", ".", 1), _percent(abs(value)), "up" if value >= 0 else "down", "")
            for value in row
        ]
        for row in values.tolist()
    ]


def _best(
    metric: Metric, jobs: Sequence[Job], rows: Sequence[Mapping[str, Any]], options: set[str]
) -> tuple[str, str, str] | None:
    """What is best, its value and whose it is."""
    words = {"heldout_loss": "Lowest held-out loss", "noise": "Least noise among the chosen"}
    known = [(row[metric.key], job) for row, job in zip(rows, jobs, strict=True) if row.get(metric.key) is not None]
    if not metric.best or not known:
        return None
    pick = max if metric.best == "high" else min
    value, job = pick(known, key=lambda one: one[0])
    rest, pair, method, members = _place(job, options)
    label = words.get(metric.key, f"Highest PWS against {metric.key.removeprefix('pws_')}")
    return label, _words(value), f"{method}, M = {members}, {pair}{', ' + rest if rest else ''} (job {job.path.name})"


def _job_line(
    folder: Path, job: Job, row: Mapping[str, Any], metrics: Sequence[Metric], options: set[str]
) -> dict[str, Any]:
    """A job in the list of jobs."""
    rest, pair, method, members = _place(job, options)
    page = job.path / "report.html"
    return {
        "name": job.path.name,
        "link": page.relative_to(folder).as_posix() if page.is_file() else None,
        "labels": [method, members, pair, rest],
        "numbers": [_words(row.get(metric.key)) for metric in metrics],
        "warnings": row.get("warnings", 0),
        "seconds": row.get("seconds"),
    }


def _job_table(rows: Sequence[Mapping[str, Any]]) -> SheetTable:
    names = ["job", "asked_for", "selected", "heldout_loss", "noise", "jaccard", "rank_correlation", "seconds"]
    names[3:3] = list(dict.fromkeys(key for row in rows for key in row if key.startswith("pws_")))
    cells = [[_value(row.get(name)) for name in names] for row in rows]
    return SheetTable("jobs", "Every job of the sweep.", names, cells, 2)


def _grid_table(
    jobs: Sequence[Job], rows: Sequence[Mapping[str, Any]], metrics: Sequence[Metric], options: set[str]
) -> SheetTable:
    names = [metric.key for metric in metrics]
    cells = []
    for job, row in zip(jobs, rows, strict=True):
        rest, pair, method, members = _place(job, options)
        cells.append([method, members, pair, rest, job.path.name, *(_value(row.get(name)) for name in names)])
    columns = ["method", "M", "snapshots", "options", "job", *names]
    return SheetTable("heatmaps", "The values behind the heat maps.", columns, cells, 5)


def _pair_table(jobs: Sequence[Job], overlap: np.ndarray, correlation: np.ndarray) -> SheetTable:
    cells: list[list[str | float | None]] = [
        [one.path.name, other.path.name, _value(overlap[i, j]), _value(correlation[i, j])]
        for i, one in enumerate(jobs)
        for j, other in enumerate(jobs)
        if i < j
    ]
    columns = ["job", "other", "jaccard", "rank_correlation"]
    return SheetTable("pairs", "How alike every two jobs choose and rank.", columns, cells, 2)


def _value(value: Any) -> str | float | None:
    if value is None or isinstance(value, str):
        return value
    return float(value) if math.isfinite(value) else None


def _words(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _percent(share: float) -> int:
    return round(100 * min(max(share, 0.0), 1.0))


def _number(text: str) -> tuple[float, str]:
    return (float(text), "") if text.replace(".", "", 1).isdigit() else (math.inf, text)
