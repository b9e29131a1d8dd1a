"""Whose rows teach faster? The curves of a sweep's candidates in one chart (arXiv 2601.13697, figure 3)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from gradfiltering.reports.page.charts import Chart, Series
from gradfiltering.reports.page.convergence import AXES, LOSSES, loss_chart
from gradfiltering.reports.paper_tables import method_of
from gradfiltering.reports.sweep_jobs import Job

CANDIDATE, COMPARED = "candidate", ("random", "full")
FAR_APART = 4  # a line this much longer than another leaves too little of a linear axis to the shorter one
Curve = Mapping[str, np.ndarray]
Points = tuple[np.ndarray, np.ndarray]


def curve_charts(jobs: Sequence[Job], options: set[str]) -> list[Chart]:
    """Training and held-out loss against examples: a chart each for every set of other options, a line for a method.

    Models that are trained on a random subset of the same size and on all rows stand beside the candidates.

    Args:
        jobs: of the sweep.
        options: those that differ between jobs besides method, M and snapshots.
    """
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        if CANDIDATE in job.curves:
            groups.setdefault(job.rest(options), []).append(job)
    charts = []
    for number, (rest, some) in enumerate(groups.items()):
        lines = _lines(some)
        for loss, column in LOSSES.items():
            known = {name: points for name, of in lines.items() if (points := _mean(of, column)) is not None}
            if known:
                named = "" if len(groups) == 1 else f"_{number}"
                charts.append(_chart(loss, known, rest, named))
    return charts


def _lines(jobs: Sequence[Job]) -> dict[str, list[Curve]]:
    """The curves of each line, which differ by seed alone; what stands beside the candidates comes last."""
    settings = {(method_of(job), job.members, job.epochs) for job in jobs}
    methods = [method for method, *_ in settings]
    lines: dict[str, list[Curve]] = {}
    for job in jobs:
        name = method = method_of(job)
        if methods.count(method) > 1:
            name += f", M = {job.members}, {job.epochs}"
        lines.setdefault(name, []).append(job.curves[CANDIDATE])
    for model in COMPARED:
        found: list[Curve] = [job.curves[model] for job in jobs if model in job.curves]
        if found and model not in lines:  # with method=random it is a candidate
            lines[model] = found
    return lines


def _mean(curves: Iterable[Curve], column: str) -> Points | None:
    """The mean over curves at the points of the first, along the stretch that all of them cover."""
    known = []
    for curve in curves:
        there = np.isfinite(curve[column])
        if there.any():
            known.append((curve[AXES["examples"]][there], curve[column][there]))
    if not known:
        return None
    grid = known[0][0]
    grid = grid[(grid >= max(x[0] for x, _ in known)) & (grid <= min(x[-1] for x, _ in known))]
    return (grid, np.mean([np.interp(grid, x, y) for x, y in known], axis=0)) if len(grid) else None


def _chart(loss: str, lines: Mapping[str, Points], rest: str, named: str) -> Chart:
    ends = [float(x[-1]) for x, _ in lines.values()]
    log = max(ends) > FAR_APART * min(ends)
    series = []
    for colour, (name, (x, y)) in enumerate(lines.items()):
        shown = x > 0 if log else slice(None)
        series.append(Series(name, x[shown], y[shown], colour=colour, dash=name in COMPARED))
    chart = loss_chart(loss, "examples", series)
    reading = f"One line a method, the mean over seeds where there are several. {chart.reading}"
    if log:
        reading += " The axis is logarithmic, since some models see many times the examples of others."
    question = chart.question + (f" ({rest})" if named else "")
    return replace(chart, name=chart.name + named, question=question, reading=reading, x_log=log)
