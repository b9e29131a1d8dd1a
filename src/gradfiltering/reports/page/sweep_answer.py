"""The first section of a sweep's page: its best setting, the factor that mattered, and what all of it cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from gradfiltering.reports.number_formats import format_interval
from gradfiltering.reports.plan_table import format_seconds
from gradfiltering.reports.sweep_jobs import SweepJob, option_name
from gradfiltering.reports.verdict_lines import VERDICT_CLASSES, format_verdict

# The better verdict first.
VERDICT_ORDER = ("use it", "no difference shown", "not tested", "do not use it")
MEASURE_WORDS = {
    "loss_difference": "held-out loss minus that of random rows",
    "token_loss_difference": "the same with each token weighing the same",
    "winning_score": "PWS against random rows",
}
LEAST_JOBS_OF_FACTOR = 3


@dataclass(frozen=True)
class BestSetting:
    """The setting to take, or the one that is ahead.

    Attributes:
        setting: its name.
        is_shown_best: True where its verdict allows its use.
        sentence: its verdict with the reasons.
        verdict_class: of the verdict, for its colour.
        measures: label and value with interval of what it was measured by.
        caution: why another setting may be as good, empty where nothing speaks for that.
    """

    setting: str
    is_shown_best: bool
    sentence: str
    verdict_class: str
    measures: list[tuple[str, str]]
    caution: str


@dataclass(frozen=True)
class Factor:
    """An option that differs between jobs, and how much of a measure's spread goes along with it.

    Attributes:
        name: of the option.
        share: of the variance over jobs that lies between its values, 0 to 1.
        best_level: value with the best mean, in words, and the mean.
        worst_level: likewise.
    """

    name: str
    share: float
    best_level: str
    worst_level: str


def find_best_setting(verdicts: Mapping[str, Mapping[str, Any]]) -> BestSetting | None:
    """Find the setting with the best verdict and, of those, the best measures; None where none was measured.

    The held-out loss against random rows decides among equal verdicts, where it was not measured the winning score. A
    loss that the mean over tokens contradicts counts as not measured.
    """
    measured = {
        setting: verdict
        for setting, verdict in verdicts.items()
        if verdict.get("loss_difference") is not None or verdict.get("winning_score") is not None
    }
    if not measured:
        return None
    has_losses = any(_counted_loss(verdict) for verdict in measured.values())

    def order(setting: str) -> tuple[int, float]:
        verdict = measured[setting]
        loss, score = _counted_loss(verdict), verdict.get("winning_score")
        if has_losses:
            return VERDICT_ORDER.index(verdict["verdict"]), loss["value"] if loss else np.inf
        return VERDICT_ORDER.index(verdict["verdict"]), -score["value"] if score else np.inf

    best_setting = min(measured, key=order)
    verdict = measured[best_setting]
    measures = [
        (description, f"{format_interval(verdict[name])}, {_count_seeds(verdict[name]['seeds'])}")
        for name, description in MEASURE_WORDS.items()
        if verdict.get(name) is not None
    ]
    return BestSetting(
        setting=best_setting,
        is_shown_best=verdict["verdict"] == "use it",
        sentence=format_verdict(verdict),
        verdict_class=VERDICT_CLASSES.get(verdict["verdict"], ""),
        measures=measures,
        caution=_caution_against(best_setting, measured, "loss_difference" if has_losses else "winning_score"),
    )


def _counted_loss(verdict: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return a verdict's loss difference; None where there is none, or the mean over tokens contradicts it."""
    return None if verdict.get("loss_is_contradicted") else verdict.get("loss_difference")


def _caution_against(best_setting: str, measured: Mapping[str, Mapping[str, Any]], measure: str) -> str:
    """Say which other settings the interval of the best one cannot be told from."""
    if measured[best_setting].get("loss_is_contradicted"):
        return "Its held-out loss does not count: the means over rows and over tokens contradict each other"
    best = measured[best_setting][measure]
    others = [verdict[measure] for name, verdict in measured.items() if name != best_setting and verdict.get(measure)]
    if not others:
        return ""
    if best is None or best["low"] is None:
        return (
            f"It has no interval, so that it may be first of {len(others) + 1} by luck alone: repeat it with three "
            "seeds before building on it"
        )
    like_best = sum(best["low"] <= estimate["value"] <= best["high"] for estimate in others)
    if not like_best:
        return ""
    return f"{like_best} of the {len(others)} other settings lie within its interval and may be as good"


def rank_factors(
    sweep_jobs: Sequence[SweepJob], table: pd.DataFrame, metric_key: str, lower_is_better: bool
) -> list[Factor]:
    """Rank the options that differ by how much of a measure's variance over jobs lies between their values.

    The share is that of a one-way analysis of variance (eta squared), corrected for the number of values (epsilon
    squared), so that an option that does nothing has a share of about 0. The seed is one of the factors: an option
    that explains no more than it does not matter.

    Args:
        sweep_jobs: in the order of the table.
        table: a row for each job with `method`, `M`, `snapshots` and the measure.
        metric_key: column of the measure.
        lower_is_better: the better end of it.
    """
    levels = pd.DataFrame({"method": table["method"], "M": table["M"], "snapshots": table["snapshots"]})
    option_values = [
        {option_name(override): override.partition("=")[2] for override in sweep_job.overrides}
        for sweep_job in sweep_jobs
    ]
    known_names = {"scorer", "selector", "method", "ensemble.m", "epochs", "epochs.early", "epochs.late"}
    for option in sorted({name for values in option_values for name in values} - known_names):
        levels[option] = [values.get(option, "(as set)") for values in option_values]
    factors = []
    for name in levels.columns:
        factor = _measure_factor(str(name), levels[name], table[metric_key].astype(float), lower_is_better)
        if factor is not None:
            factors.append(factor)
    return sorted(factors, key=lambda factor: -factor.share)


def _measure_factor(name: str, levels: pd.Series, values: pd.Series, lower_is_better: bool) -> Factor | None:
    """Measure a factor; None where it does not differ, or every job has a value of its own."""
    is_measured = values.notna()
    levels, values = levels[is_measured], values[is_measured]
    level_count = levels.nunique()
    if level_count < 2 or len(values) < max(LEAST_JOBS_OF_FACTOR, level_count + 1) or values.nunique() < 2:
        return None
    groups = values.groupby(levels)
    total_squares = float(((values - values.mean()) ** 2).sum())
    within_squares = float(groups.apply(lambda group: ((group - group.mean()) ** 2).sum()).sum())
    within_variance = within_squares / (len(values) - level_count)
    share = (total_squares - within_squares - (level_count - 1) * within_variance) / total_squares
    means = groups.mean().sort_values(ascending=lower_is_better)
    best_level, worst_level = (f"{means.index[end]} ({means.iloc[end]:.3f})" for end in (0, -1))
    return Factor(name, max(share, 0.0), best_level, worst_level)


def describe_factors(factors: Sequence[Factor], measure_phrase: str) -> str:
    """Say in a sentence which factor mattered."""
    if not factors:
        return ""
    strongest = factors[0]
    seed_share = next((factor.share for factor in factors if factor.name == "seed"), None)
    if strongest.name == "seed" or strongest.share < 0.05:
        return f"No option mattered for {measure_phrase}: none explains more of its spread than chance does"
    sentence = f"Most goes along with {strongest.name}: {strongest.share:.0%} of the spread in {measure_phrase}"
    return sentence if seed_share is None else f"{sentence}, {seed_share:.0%} with the seed"


def describe_costs(table: pd.DataFrame) -> str:
    """Say what the sweep took and what the cache saved."""
    seconds, saved = float(table["seconds"].sum()), float(table["saved"].sum())
    cost_text = f"{len(table):,} job{'' if len(table) == 1 else 's'} took {format_seconds(seconds)}"
    if len(table) > 1:
        cost_text += f", {format_seconds(float(table['seconds'].median()))} each in the middle"
    return cost_text + (f"; the cache saved {format_seconds(saved)} more" if saved >= 1 else "")


def _count_seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"
