"""The loss curves of a sweep's candidates in the same chart (arXiv 2601.13697, figure 3)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from gradfiltering.reports.data_lines import find_loss_unit
from gradfiltering.reports.page.charts import Chart, line_chart
from gradfiltering.reports.page.convergence_curves import AXES, LOSSES, label_losses
from gradfiltering.reports.run_files import CANDIDATE
from gradfiltering.reports.sweep_jobs import SweepJob

BASELINES = ("random", "full")
LINE_WORDS = "A line is a method, the mean over seeds where there are several."
LOG_WORDS = " The axis is logarithmic, since some models see many times the examples of others."
FAR_APART = 4  # a line this much longer than another leaves too little of a linear axis to the shorter


def draw_sweep_curves(sweep_jobs: Sequence[SweepJob], varying_options: set[str]) -> list[Chart]:
    """Draw training and held-out loss against examples: a chart for each set of other options, a line for a method.

    Models that are trained on a random subset of the same size and on all rows stand beside the candidates.
    `varying_options` differ between jobs besides method, M and snapshots.
    """
    job_groups: dict[str, list[SweepJob]] = {}
    for sweep_job in sweep_jobs:
        if CANDIDATE in sweep_job.curves:
            job_groups.setdefault(sweep_job.other_options(varying_options), []).append(sweep_job)
    curve_charts = []
    for group_number, (other_options, group_jobs) in enumerate(job_groups.items()):
        lines = _collect_lines(group_jobs)
        for loss_kind, column in LOSSES.items():
            mean_curves = {name: average_curves(loss_curves, column) for name, loss_curves in lines.items()}
            measured_curves = {name: line_points for name, line_points in mean_curves.items() if len(line_points)}
            if not measured_curves:
                continue
            ends = [float(line_points["x"].max()) for line_points in measured_curves.values()]
            x_log = max(ends) > FAR_APART * min(ends)
            chart_data = pd.concat([line_points.assign(series=name) for name, line_points in measured_curves.items()])
            run_labels = label_losses(loss_kind, "examples", find_loss_unit(group_jobs[0].summary))
            chart_labels = replace(
                run_labels,
                name=run_labels.name + ("" if len(job_groups) == 1 else f"_{group_number}"),
                question=run_labels.question + (f" ({other_options})" if other_options else ""),
                reading=f"{LINE_WORDS} {run_labels.reading}{LOG_WORDS if x_log else ''}",
            )
            shown_data = chart_data[chart_data["x"] > 0] if x_log else chart_data
            curve_charts.append(line_chart(chart_labels, shown_data, dashed_series=BASELINES, x_log=x_log))
    return curve_charts


def _collect_lines(sweep_jobs: Sequence[SweepJob]) -> dict[str, list[pd.DataFrame]]:
    """Collect the curves of each line, which differ by seed alone; the baselines come last."""
    settings = {(sweep_job.method, sweep_job.member_count, sweep_job.epoch_pair) for sweep_job in sweep_jobs}
    method_names = [method for method, _, _ in settings]
    lines: dict[str, list[pd.DataFrame]] = {}
    for sweep_job in sweep_jobs:
        name = sweep_job.method
        if method_names.count(name) > 1:
            name += f", M = {sweep_job.member_count}, {sweep_job.epoch_pair}"
        lines.setdefault(name, []).append(sweep_job.curves[CANDIDATE])
    for model in BASELINES:
        loss_curves = [sweep_job.curves[model] for sweep_job in sweep_jobs if model in sweep_job.curves]
        if loss_curves and model not in lines:  # with method=random it is a candidate
            lines[model] = loss_curves
    return lines


def average_curves(loss_curves: Sequence[pd.DataFrame], column: str) -> pd.DataFrame:
    """Average curves at the points of the first, along the stretch that all of them cover.

    Returns:
        Columns `x` (examples seen) and `y`; empty where nothing was measured.
    """
    measured = [curve.dropna(subset=column) for curve in loss_curves if column in curve]
    line_points = [(curve[AXES["examples"]].to_numpy(), curve[column].to_numpy()) for curve in measured if len(curve)]
    if not line_points:
        return pd.DataFrame({"x": [], "y": []})
    x_grid = line_points[0][0]
    x_grid = x_grid[(x_grid >= max(x[0] for x, _ in line_points)) & (x_grid <= min(x[-1] for x, _ in line_points))]
    return pd.DataFrame({"x": x_grid, "y": np.mean([np.interp(x_grid, x, y) for x, y in line_points], axis=0)})
