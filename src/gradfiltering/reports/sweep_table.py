"""One table of all jobs of a sweep: what was asked for, what came out, what it cost."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradfiltering.errors import UserError
from gradfiltering.reports.page.answer import saved_seconds
from gradfiltering.reports.page.sweep import write_sweep_page
from gradfiltering.reports.sweep_jobs import Job, mean_with_others, overlaps, rank_correlations, read_jobs
from gradfiltering.reports.verdict_tables import compare_jobs
from gradfiltering.runs.cache import atomic_path, write_json

PWS_COLUMNS = {"": "value", "_low": "low", "_high": "high"}
SHOWN = (
    "job", "asked_for", "selected", "pws", "heldout_loss", "jaccard", "rank_correlation", "warnings", "seconds",
    "saved",
)  # fmt: skip


def write_sweep(folder: Path, console: Console) -> list[dict[str, Any]]:
    """Reads the jobs of a sweep's folder, writes its tables and its page and prints the table.

    Returns:
        One row a job.

    Raises:
        UserError: the folder holds no run.
    """
    jobs = _jobs(folder)
    pairs = overlaps(jobs), rank_correlations(jobs)
    rows = _rows(jobs, pairs)
    write_json(folder / "sweep.json", rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_path(folder / "sweep.csv") as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    for shown in _screen(folder, jobs, rows):
        console.print(shown, soft_wrap=isinstance(shown, Text))
    compare_jobs(folder, [folder / row["job"] for row in rows], console)
    page = write_sweep_page(folder, jobs, rows, *pairs)
    console.print(f"Heat maps, tables and their LaTeX, Markdown and CSV: {page}", soft_wrap=True)
    return rows


def _screen(folder: Path, jobs: Sequence[Job], rows: Sequence[dict[str, Any]]) -> Iterator[Table | Text]:
    """What all jobs were asked for is said once, above the table; its rows say what sets them apart."""
    shared = [asked for asked in jobs[0].asked if len(jobs) > 1 and all(asked in job.asked for job in jobs)]
    table = Table(*SHOWN, title=Text(f"Sweep {folder}"), title_justify="left")
    for job, row in zip(jobs, rows, strict=True):
        own = {**row, "asked_for": " ".join(asked for asked in job.asked if asked not in shared)}
        table.add_row(*(Text(_cell(own, name)) for name in SHOWN))
    if shared:
        yield Text.assemble(("All jobs  ", "bold"), " ".join(shared))
    yield table


def sweep_rows(folder: Path) -> list[dict[str, Any]]:
    """One row a job, in the order of the jobs."""
    return _rows(_jobs(folder))


def _jobs(folder: Path) -> list[Job]:
    jobs = read_jobs(folder)
    if not jobs:
        raise UserError(f"{folder} holds no run with a summary.json; give the folder of a sweep (hydra.sweep.dir)")
    return jobs


def _rows(jobs: Sequence[Job], pairs: Sequence[np.ndarray] | None = None) -> list[dict[str, Any]]:
    overlap, correlation = pairs or (overlaps(jobs), rank_correlations(jobs))
    rows = [_row(job) for job in jobs]
    for row, jaccard, ranks in zip(rows, mean_with_others(overlap), mean_with_others(correlation), strict=True):
        row.update(jaccard=jaccard, rank_correlation=ranks)
    return rows


def _row(job: Job) -> dict[str, Any]:
    summary = job.summary
    row: dict[str, Any] = {"job": job.path.name, "asked_for": " ".join(job.asked)}
    selection = summary.get("selection", {})
    row.update({name: selection.get(name) for name in ("scorer", "selector", "selected")})
    values = np.sort(job.scores[1])
    if len(values):
        middle = float(values[len(values) // 2])
        row.update(score_min=float(values[0]), score_median=middle, score_max=float(values[-1]))
    for name, value in summary["diagnostics"].items():
        if isinstance(value, int | float):
            row[name] = value
    truth = summary["diagnostics"].get("truth", {})
    if truth.get("auc"):
        row.update({f"auc_{name}": truth["auc"]["scorer"][name] for name in ("value", "low", "high")})
    if "clean" in truth.get("share", {}):
        row["clean_selected"] = truth["share"]["clean"]["selected"]
    row["warnings"] = len(summary["diagnostics"].get("warnings", []))
    row["heldout_loss"] = summary.get("target", {}).get("candidate", {}).get("heldout_loss")
    for against, sets in summary.get("pws", {}).items():
        pooled = sets["all"]
        row.update({f"pws_{against}{end}": pooled[name] for end, name in PWS_COLUMNS.items()})
    row["seconds"] = round(sum(stage["seconds"] for stage in summary["stages"]), 1)
    row["saved"] = round(saved_seconds(summary), 1)
    return row


def _cell(row: dict[str, Any], name: str) -> str:
    if name == "pws":
        opponents = [key.removeprefix("pws_") for key in row if key.startswith("pws_") and f"{key}_low" in row]
        return "\n".join(
            f"{against} {row[f'pws_{against}']:.2f} [{row[f'pws_{against}_low']:.2f}, {row[f'pws_{against}_high']:.2f}]"
            for against in opponents
            if row[f"pws_{against}"] is not None
        )
    value = row.get(name)
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) and name not in ("seconds", "saved") else str(value)
