"""Which data teaches faster? The targets' curves, the area under them, and what it takes to get as far."""

from dataclasses import dataclass

import numpy as np
from scipy.integrate import trapezoid

from gradfiltering.reports.page.charts import Chart, Series
from gradfiltering.reports.page.folder import RunFolder

AXES = {"examples": "examples_seen", "tokens": "tokens_seen", "seconds": "seconds"}
TITLES = {"examples": "examples seen", "tokens": "tokens seen", "seconds": "seconds of training"}
LOSSES = {"heldout": "heldout_loss", "train": "train_loss"}
QUESTIONS = {
    "heldout": "Which rows lead to a better model sooner?",
    "train": "How fast does the training loss fall?",
}
COLOURS = {"candidate": 0, "random": 1, "full": 2, "rival": 3}


@dataclass(frozen=True)
class Progress:
    """One target along one axis.

    Attributes:
        model: its name.
        mean_loss: area under the held-out curve over the stretch all models cover, divided by its length: the mean
            held-out loss there, nats per response token.
        reached: where the held-out loss first reaches `Convergence.level`, None if never.
        final: held-out loss at the end.
    """

    model: str
    mean_loss: float | None
    reached: float | None
    final: float | None


@dataclass(frozen=True)
class Convergence:
    """All targets along one axis.

    Attributes:
        axis: one of `AXES`.
        level: the held-out loss that every model reaches: the largest of their smallest.
        until: end of the stretch that all models cover.
        models: one each.
    """

    axis: str
    level: float
    until: float
    models: list[Progress]


def convergence_charts(run: RunFolder) -> list[Chart]:
    """Held-out and training loss against examples, tokens and seconds: `heldout_examples` and so on."""
    charts = []
    for loss, column in LOSSES.items():
        for axis, x_column in AXES.items():
            series = []
            for number, (model, curve) in enumerate(run.curves.items()):
                known = np.isfinite(curve[column])
                if known.any():
                    colour = COLOURS.get(model, 4 + number % 2)
                    x, y = curve[x_column][known], curve[column][known]
                    series.append(Series(model, x, y, colour=colour, dash=model == "random"))
            if series:
                charts.append(loss_chart(loss, axis, series))
    return charts


def loss_chart(loss: str, axis: str, series: list[Series]) -> Chart:
    """One of `LOSSES` against one of `AXES`, a line a model."""
    words = "loss on held-out rows" if loss == "heldout" else "mean loss since the point before"
    return Chart(
        name=f"{loss}_{axis}",
        question=QUESTIONS[loss],
        x_title=TITLES[axis],
        y_title=f"{'held-out' if loss == 'heldout' else 'training'} loss, nats per token",
        series=series,
        reading=f"Each mark is the {words}; lower and further left is better."
        if loss == "heldout"
        else f"Each mark is the {words}. A subset that is easy to learn falls fast without teaching more.",
    )


def compare(run: RunFolder, axis: str) -> Convergence | None:
    """Area under the curve and examples-to-reach, along one axis; None unless held-out losses were measured."""
    curves = {}
    for model, curve in run.curves.items():
        known = np.isfinite(curve["heldout_loss"])
        if known.sum() > 1:
            curves[model] = (curve[AXES[axis]][known], curve["heldout_loss"][known])
    if not curves:
        return None
    level = max(float(loss.min()) for _, loss in curves.values())
    until = min(float(x[-1]) for x, _ in curves.values())
    models = [
        Progress(model, mean_until(x, loss, until), first_reach(x, loss, level), float(loss[-1]))
        for model, (x, loss) in curves.items()
    ]
    return Convergence(axis, level, until, models)


def mean_until(x: np.ndarray, y: np.ndarray, until: float) -> float | None:
    """Area under the line through the points from the first x to `until`, by its length; None for no length."""
    inside = x < until
    grid = np.append(x[inside], until)
    if len(grid) < 2 or until <= x[0]:
        return None
    return float(trapezoid(np.interp(grid, x, y), grid) / (until - x[0]))


def first_reach(x: np.ndarray, y: np.ndarray, level: float) -> float | None:
    """Where the line through the points first comes down to `level`."""
    below = np.flatnonzero(y <= level)
    if not len(below):
        return None
    end = int(below[0])
    if end == 0:
        return float(x[0])
    share = (y[end - 1] - level) / (y[end - 1] - y[end])
    return float(x[end - 1] + share * (x[end] - x[end - 1]))
