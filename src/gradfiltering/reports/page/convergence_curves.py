"""Loss curves of the fine-tuned models, the area under them, and the training it takes to reach a loss."""

import numpy as np
import pandas as pd
from scipy.integrate import trapezoid

from gradfiltering.reports.data_lines import find_loss_unit
from gradfiltering.reports.page.charts import Chart, ChartLabels, line_chart
from gradfiltering.reports.run_files import RunFiles

AXES = {"examples": "examples_seen", "tokens": "tokens_seen", "seconds": "seconds"}
AXIS_TITLES = {"examples": "examples seen", "tokens": "tokens seen", "seconds": "seconds of training"}
LOSSES = {"heldout": "heldout_loss", "train": "train_loss", "accuracy": "heldout_accuracy"}
QUESTIONS = {
    "heldout": "Which rows lead to a better model sooner?",
    "train": "How fast does the training loss fall?",
    "accuracy": "Which rows teach to prefer the chosen answers?",
}
READINGS = {
    "heldout": "Each mark is the loss on held-out rows; lower and further left is better.",
    "train": "Each mark is the mean loss since the mark before. A subset that is easy to learn falls fast without "
    "teaching more.",
    "accuracy": "Reward accuracy: the share of held-out pairs whose chosen answer gained more probability over the "
    "base model than the rejected one; at the start, where nothing is learnt, it is a matter of rounding.",
}
LOSS_TITLES = {"heldout": "held-out loss", "train": "training loss", "accuracy": "held-out pairs ranked right"}
MODEL_COLOURS = {"candidate": 0, "random": 1, "full": 2, "rival": 3}


def draw_convergence(run_files: RunFiles) -> list[Chart]:
    """Draw held-out and training loss against examples, tokens and seconds: `heldout_examples` and so on."""
    drawn_charts = []
    for loss_kind, loss_column in LOSSES.items():
        for axis_name, axis_column in AXES.items():
            curve_frames = [
                pd.DataFrame({"series": model, "x": loss_curve[axis_column], "y": loss_curve[loss_column]}).dropna()
                for model, loss_curve in run_files.curves.items()
                if loss_column in loss_curve  # curves of earlier versions lack the accuracy
            ]
            chart_data = pd.concat(curve_frames) if curve_frames else pd.DataFrame()
            if len(chart_data):
                chart_labels = label_losses(loss_kind, axis_name, find_loss_unit(run_files.summary))
                drawn_charts.append(
                    line_chart(chart_labels, chart_data, palette_indices=MODEL_COLOURS, dashed_series=["random"])
                )
    return drawn_charts


def label_losses(loss_kind: str, axis_name: str, loss_unit: str) -> ChartLabels:
    """Return the words of a chart of one of `LOSSES` against one of `AXES`."""
    return ChartLabels(
        name=f"{loss_kind}_{axis_name}",
        question=QUESTIONS[loss_kind],
        reading=READINGS[loss_kind],
        x_title=AXIS_TITLES[axis_name],
        y_title=LOSS_TITLES[loss_kind] + (f", {loss_unit}" if loss_kind != "accuracy" else ""),
    )


def compare_convergence(run_files: RunFiles) -> tuple[pd.DataFrame, float] | None:
    """Compare the models' held-out losses along each axis.

    Returns:
        A row for each model: the final loss and, for each axis, `mean <axis>`, the mean loss over the stretch that all
        models cover (the end of which is in `attrs["stretch_ends"]`), and `reach <axis>`, where the curve first comes
        down to the level, NaN if never; and that level, the lowest loss that every model reaches. None where no
        held-out loss was measured.
    """
    loss_curves = {model: loss_curve.dropna(subset="heldout_loss") for model, loss_curve in run_files.curves.items()}
    loss_curves = {model: loss_curve for model, loss_curve in loss_curves.items() if len(loss_curve) > 1}
    if not loss_curves:
        return None
    level = max(float(loss_curve["heldout_loss"].min()) for loss_curve in loss_curves.values())
    final_losses = {model: float(loss_curve["heldout_loss"].iloc[-1]) for model, loss_curve in loss_curves.items()}
    table = pd.DataFrame({"final": final_losses})
    stretch_ends = {}
    for axis_name, column in AXES.items():
        stretch_ends[axis_name] = min(float(loss_curve[column].iloc[-1]) for loss_curve in loss_curves.values())
        curve_points = [
            (loss_curve[column].to_numpy(dtype=float), loss_curve["heldout_loss"].to_numpy())
            for loss_curve in loss_curves.values()
        ]
        table[f"mean {axis_name}"] = [mean_loss_until(x, losses, stretch_ends[axis_name]) for x, losses in curve_points]
        table[f"reach {axis_name}"] = [find_first_reach(x, losses, level) for x, losses in curve_points]
    table.attrs["stretch_ends"] = stretch_ends
    return table, level


def mean_loss_until(x: np.ndarray, losses: np.ndarray, end: float) -> float:
    """Compute the mean of the line through the points from the first x to `end`; NaN for no length."""
    x_grid = np.append(x[x < end], end)
    if len(x_grid) < 2 or end <= x[0]:
        return float("nan")
    return float(trapezoid(np.interp(x_grid, x, losses), x_grid) / (end - x[0]))


def find_first_reach(x: np.ndarray, losses: np.ndarray, level: float) -> float:
    """Find where the line through the points first comes down to `level`; NaN if never."""
    indices_below = np.flatnonzero(losses <= level)
    if not len(indices_below):
        return float("nan")
    end = int(indices_below[0])
    if end == 0:
        return float(x[0])
    share = (losses[end - 1] - level) / (losses[end - 1] - losses[end])
    return float(x[end - 1] + share * (x[end] - x[end - 1]))
