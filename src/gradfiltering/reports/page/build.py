"""Writes `report.html` and the figure files of a run."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.data.row_texts import write_row_texts
from gradfiltering.errors import UserError
from gradfiltering.reports.page import answer, convergence, explorer, health, provenance
from gradfiltering.reports.page.charts import Chart
from gradfiltering.reports.page.figures import FIGURES, write_figures
from gradfiltering.reports.page.folder import RunFolder
from gradfiltering.reports.page.render import render
from gradfiltering.reports.page.selection import selection_charts
from gradfiltering.reports.page.table import RowTable, row_table
from gradfiltering.runs.cache import Cache, atomic_path

PAGE = "report.html"
ALL = "all"


@dataclass(frozen=True)
class PageSettings:
    """What a run's page is to hold.

    Attributes:
        page: whether to write one.
        rows: how many rows it holds with their text, or `all`.
        figures: whether to write the charts as PNG and SVG files too.
    """

    page: bool
    rows: int | str
    figures: bool

    def __post_init__(self):
        if self.rows != ALL and (not isinstance(self.rows, int) or isinstance(self.rows, bool) or self.rows < 0):
            raise UserError(f"report.rows={self.rows}: give a number of rows, 0 or more, or all")


def report(run_dir: Path, records: InstructionDataset, cache: Cache, settings: PageSettings) -> None:
    """The report stage: keeps the rows' text beside the results, and writes the page and its figures."""
    if settings.page:
        write_row_texts(run_dir, records, cache)
        write_page(run_dir, settings)


def rebuild(run_dir: Path, rows: str | None, figures: bool) -> Path:
    """Writes the page of an earlier run anew.

    Args:
        run_dir: its folder.
        rows: how many rows the page holds, or `all`; None for what the run's own configuration says.
        figures: whether to write the figure files.

    Raises:
        UserError: the folder holds no run, or `rows` is no number.
    """
    own = RunFolder(run_dir).config.get("report", {}).get("rows", ALL)
    wanted = own if rows is None else int(rows) if rows.isdecimal() else rows
    return write_page(run_dir, PageSettings(page=True, rows=wanted, figures=figures))


def write_page(run_dir: Path, settings: PageSettings) -> Path:
    """Writes the page of a run, from its folder alone.

    Returns:
        The page.

    Raises:
        UserError: the folder holds no run.
    """
    run = RunFolder(run_dir)
    seed = int(run.environment["seed"])
    rows = row_table(run)
    stable = health.stability(run)
    heldout = health.heldout(run)
    fraction = None if rows.kept is None or not len(rows) else float(rows.kept.mean())
    groups: dict[str, list[Chart | None]] = {
        "answer": [answer.pws_chart(run)],
        "selection": list(selection_charts(rows, run.diagnostics, seed)),
        "health": [
            health.trajectories(run),
            health.collapse(run),
            heldout[0] if heldout else None,
            health.stability_chart(stable, fraction) if stable else None,
        ],
        "convergence": list(convergence.convergence_charts(run)),
    }
    known = {name: [chart for chart in charts if chart is not None] for name, charts in groups.items()}
    charts = [chart for group in known.values() for chart in group]
    some = explorer.sample(run, rows, settings.rows, seed)
    context = {
        **_context(run, rows, some),
        "groups": {name: [chart.name for chart in group] for name, group in known.items()},
        "figures": settings.figures,
    }
    data = {"rows": explorer.payload(run, rows, some, _kept_share(rows, stable))}
    text = render("report.html", context, charts, data, styles=["report.css"], scripts=["explorer.js"])
    with atomic_path(run_dir / PAGE) as part:
        part.write_text(text, encoding="utf-8", newline="\n")
    if settings.figures:
        write_figures(charts, run_dir / FIGURES)
    return run_dir / PAGE


def _kept_share(rows: RowTable, stable: health.Stability | None) -> np.ndarray | None:
    if stable is None or stable.kept_share is None:
        return None
    share = np.full(len(rows), np.nan)
    share[stable.example_ids] = stable.kept_share
    return share


def _context(run: RunFolder, rows: RowTable, some: explorer.Sample) -> Mapping[str, Any]:
    """What the template says in words and tables."""
    comparisons = [convergence.compare(run, axis) for axis in convergence.AXES]
    return {
        "name": "/".join(run.path.resolve().parts[-2:]),
        "headline": answer.headline(run),
        "verdicts": answer.verdicts(run),
        "metrics": _metrics(run),
        "costs": answer.costs(run),
        "checks": answer.checks(run),
        "warnings": [answer.split_warning(one) for one in run.diagnostics.get("warnings", [])],
        "not_run": answer.not_run(run),
        "selection": run.summary.get("selection"),
        "targets": run.summary.get("target", {}),
        "saved": answer.saved_seconds(run.summary),
        "truth": run.diagnostics.get("truth"),
        "total": len(rows),
        "shown": len(some.example_ids),
        "parts": some.parts,
        "clip": some.clip,
        "whole_texts": run.texts.whole,
        "kept": rows.kept is not None,
        "length_unit": rows.length_name.removeprefix("response_"),
        "has_lengths": bool(np.isfinite(rows.length).any()),
        "has_sources": rows.sources is not None,
        "has_kinds": rows.kinds is not None,
        "has_unscored": bool(run.unscored),
        "agreement": health.agreement(run),
        "comparisons": [asdict(one) for one in comparisons if one is not None],
        "differences": provenance.differences(run),
        "facts": provenance.facts(run),
        "command": provenance.command(run),
        "bibtex": provenance.bibtex(run),
    }


def _metrics(run: RunFolder) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Model, prompt set and metrics against references, where answers were compared with any."""
    return [
        (model, name, values)
        for model, sets in run.summary.get("metrics", {}).items()
        for name, values in sets.items()
        if values.get("references")
    ]
