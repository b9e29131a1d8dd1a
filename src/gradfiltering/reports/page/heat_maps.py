"""Heat maps of a sweep: each measure by method, number of members, and other options."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

NO_JOB, NOT_MEASURED = "no job", "not measured"
COMPANY_KEYS = ("jaccard", "rank_correlation")  # depend on which other jobs happened to run


@dataclass(frozen=True)
class Metric:
    """A measure that a heat map shows.

    Attributes:
        key: in the rows of the sweep.
        short_name: its column in the table of jobs.
        question: in plain words.
        reading: explains the values.
        best_words: label of the best value, or "" where no end is better.
        lower_is_better: the better end.
        phrase: the measure within a sentence.
        neutral_value: divides better from worse, None where there is none.
    """

    key: str
    short_name: str
    question: str
    reading: str
    best_words: str = ""
    lower_is_better: bool = False
    phrase: str = ""
    neutral_value: float | None = None


WINNING_SCORE = Metric(
    key="pws",
    short_name="PWS",
    question="",
    reading="Pairwise winning score of the candidate: 1 is on a par, 2 wins every prompt, 0 none.",
    neutral_value=1.0,
)
METRICS = [
    Metric(
        key="heldout_loss",
        short_name="held-out loss",
        question="Which subset teaches most?",
        reading="Held-out loss of the candidate; lower is better.",
        best_words="Lowest held-out loss",
        phrase="held-out loss",
        lower_is_better=True,
    ),
    Metric(
        key="noise",
        short_name="noise",
        question="Which settings let planted defects through?",
        reading="Share of planted rows among the selected; lower is better.",
        best_words="Least noise among the selected",
        phrase="noise among the selected",
        lower_is_better=True,
    ),
    Metric(
        key="jaccard",
        short_name="Jaccard",
        question="How much does a selection share with the others?",
        reading="Mean Jaccard index of the selected rows with those of every other job; 1 is the same rows.",
    ),
    Metric(
        key="rank_correlation",
        short_name="rank corr.",
        question="How alike is the ranking to the others?",
        reading="Mean Spearman correlation of the scores with those of every other job.",
        neutral_value=0.0,
    ),
]


@dataclass(frozen=True)
class HeatCell:
    """A cell of a heat map.

    Attributes:
        text: the value, or the reason for which there is none.
        level: strength of the colour, 0 to 100; None for a cell without a value.
        side: `up` or `down` of the neutral value.
        jobs: names of the jobs behind it.
    """

    text: str
    level: int | None = None
    side: str = ""
    jobs: str = ""


def list_metrics(table: pd.DataFrame) -> list[Metric]:
    """List the metrics in the order of the page."""
    baseline_names = [name[4:-4] for name in table.columns if name.startswith("pws_") and name.endswith("_low")]
    winning_scores = [
        replace(
            WINNING_SCORE,
            key=f"pws_{name}",
            short_name=f"PWS, {name}",
            question=f"Which settings win against {name}?",
            best_words=f"Highest PWS against {name}",
            phrase=f"PWS against {name}",
        )
        for name in baseline_names
    ]
    return [*winning_scores, *METRICS]


def build_heat_maps(
    table: pd.DataFrame, shown_metrics: Sequence[Metric], planned_values: Mapping[str, list[str]]
) -> list[dict[str, Any]]:
    """Build, for each metric, a table of method by M for each set of other options and pair of snapshots."""
    method_names = list(dict.fromkeys([*table["method"], *planned_values.get("scorer", [])]))
    pair_values = sorted({*table["snapshots"], *planned_values.get("epochs", [])})
    member_counts = sorted({*table["M"], *planned_values.get("ensemble.m", [])}, key=_numeric_order)
    setting_groups = dict(list(table.groupby(["options", "snapshots", "method", "M"])))
    heat_maps = []
    for metric in shown_metrics:
        weakest, strongest = _scale_ends(metric, table[metric.key])
        map_parts = []
        for options, pair in product(dict.fromkeys(table["options"]), pair_values):
            rows = []
            for method in method_names:
                groups = [setting_groups.get((options, pair, method, count)) for count in member_counts]
                rows.append((method, [_build_cell(group, metric, weakest, strongest) for group in groups]))
            map_parts.append({"options": options, "pair": pair, "columns": member_counts, "rows": rows})
        low_end = weakest if metric.neutral_value is None else metric.neutral_value - strongest
        high_end = strongest if metric.neutral_value is None else metric.neutral_value + strongest
        heat_maps.append({"metric": metric, "parts": map_parts, "ends": (f"{low_end:.3g}", f"{high_end:.3g}")})
    return heat_maps


def _scale_ends(metric: Metric, values: pd.Series) -> tuple[float, float]:
    """Compute the values at which the colour is weakest and strongest; beside a neutral value, their distance."""
    if metric.neutral_value is not None:
        return metric.neutral_value, float((values - metric.neutral_value).abs().max()) or 1.0
    # Strong colour is the better end in every map, so that a glance finds the best in each.
    ends = float(values.min()), float(values.max())
    return ends[::-1] if metric.lower_is_better else ends


def _build_cell(setting_group: pd.DataFrame | None, metric: Metric, weakest: float, strongest: float) -> HeatCell:
    if setting_group is None:
        return HeatCell(NO_JOB)
    sweep_jobs, value = ", ".join(setting_group["job"]), setting_group[metric.key].mean()
    if pd.isna(value):
        return HeatCell(NOT_MEASURED, jobs=sweep_jobs)
    if metric.neutral_value is not None:
        side = "up" if value >= metric.neutral_value else "down"
        return HeatCell(f"{value:.3f}", _percent(abs(value - metric.neutral_value) / strongest), side, sweep_jobs)
    spread = strongest - weakest
    return HeatCell(f"{value:.3f}", _percent((value - weakest) / spread if spread else 0.0), "up", sweep_jobs)


def build_pair_cells(values: np.ndarray) -> list[list[HeatCell]]:
    """Build the cells of a map of [J, J] values of pairs of jobs, each between -1 and 1."""
    return [
        [
            HeatCell(f"{value:.2f}".replace("0.", ".", 1), _percent(abs(value)), "up" if value >= 0 else "down")
            if np.isfinite(value)
            else HeatCell(NOT_MEASURED)
            for value in row
        ]
        for row in values.tolist()
    ]


def _percent(share: float) -> int:
    return round(100 * min(max(share, 0.0), 1.0))


def _numeric_order(text: str) -> tuple[float, str]:
    return (float(text), "") if text.replace(".", "", 1).isdigit() else (float("inf"), text)
