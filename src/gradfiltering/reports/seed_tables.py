"""The table of a sweep over seeds: each setting against its baselines, with every source of chance in the interval."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from gradfiltering.reports.paper_tables import PaperTable
from gradfiltering.reports.run_files import CANDIDATE
from gradfiltering.reports.sweep_jobs import SweepJob
from gradfiltering.reports.verdict_tables import read_outcomes
from gradfiltering.statistics.paired_comparison import correct_by_holm
from gradfiltering.statistics.seed_intervals import (
    MIN_SEEDS,
    SeedEstimate,
    estimate_mean_outcome,
    estimate_mean_value,
)

SEED_TABLE = "seeds"
CONFIDENCE = 0.95
CHANCE_AUC = 0.5

# Name in a target's results. In the first each held-out row weighs the same, in the second each of their tokens.
LossWeighting = Literal["heldout_loss", "heldout_token_loss"]
LOSS_NAMES: dict[LossWeighting, str] = {
    "heldout_loss": "held-out loss",
    "heldout_token_loss": "held-out loss by tokens",
}


@dataclass(frozen=True)
class SeedRow:
    """A measure of a setting over its seeds.

    Attributes:
        setting: method and what else tells the settings apart.
        measure: in words; held-out loss stands first.
        estimate: value, interval and p-value of the difference from `null_value`.
        null_value: the value that means no difference.
    """

    setting: str
    measure: str
    estimate: SeedEstimate
    null_value: float


def build_seed_table(sweep_jobs: Sequence[SweepJob], varying_options: set[str]) -> PaperTable | None:
    """Build the table of each setting's measures over its seeds; None where no setting has several seeds.

    A star marks a difference that is left after Holm's correction over all tests of the table. Fewer than three seeds
    have no interval and no star.
    """
    rows = [
        row
        for setting, jobs_by_seed in group_by_setting(sweep_jobs, varying_options).items()
        if len(jobs_by_seed) > 1
        for row in measure_setting(setting, jobs_by_seed)
    ]
    if not rows:
        return None
    labels = [
        {
            "setting": row.setting,
            "measure": row.measure,
            "seeds": str(row.estimate.seeds),
            "by seed": " ".join(f"{value:.3f}" for value in row.estimate.by_seed),
        }
        for row in rows
    ]
    table = tabulate_estimates(labels, [row.estimate for row in rows], "value")
    note = (
        f"{describe_correction(table)} Intervals are of {CONFIDENCE:.0%}, over seeds and prompts; fewer than "
        f"{MIN_SEEDS} seeds have none."
    )
    return PaperTable(SEED_TABLE, "Every setting over its seeds, held-out loss first.", table, label_count=4, note=note)


def describe_correction(table: pd.DataFrame) -> str:
    """Say how many tests stand behind the stars of a table of `tabulate_estimates`."""
    return f"{table['p'].count()} tests, corrected by Holm's method; a star marks what is left of them."


def tabulate_estimates(
    labels: Sequence[Mapping[str, str]], estimates: Sequence[SeedEstimate], value_column: str
) -> pd.DataFrame:
    """Tabulate values with intervals and p-values; a star marks what Holm's correction over all of them leaves.

    Args:
        labels: first columns of each row.
        estimates: of the rows; those without a p-value were not tested.
        value_column: name of the column of values.
    """
    p_values = [estimate.p for estimate in estimates if estimate.p is not None]
    corrected = iter(correct_by_holm(p_values))
    table = pd.DataFrame(
        {
            value_column: [estimate.value for estimate in estimates],
            "low": [estimate.low for estimate in estimates],
            "high": [estimate.high for estimate in estimates],
            "p": [estimate.p for estimate in estimates],
            "p (Holm)": [None if estimate.p is None else next(corrected) for estimate in estimates],
        },
        dtype=float,
    )
    table["shown"] = np.where(table["p (Holm)"] < 1 - CONFIDENCE, "*", "")
    return pd.concat([pd.DataFrame(labels), table], axis=1)


def group_by_setting(sweep_jobs: Sequence[SweepJob], varying_options: set[str]) -> dict[str, dict[int, SweepJob]]:
    """Group the jobs by all but their seeds.

    Of two jobs with the same seed the later counts, one of an unknown seed never.
    """
    labels = {
        sweep_job.name: {
            "data": sweep_job.dataset,
            "target": sweep_job.target_model,
            "method": sweep_job.method,
            "rows": "" if sweep_job.fraction is None else f"{sweep_job.fraction:.0%}",
            "M": f"M = {sweep_job.member_count}",
            "snapshots": sweep_job.epoch_pair,
            "options": sweep_job.other_options(varying_options),
        }
        for sweep_job in sweep_jobs
    }
    telling_names = [
        name
        for name in ("data", "target", "method", "rows", "M", "snapshots", "options")
        if name == "method" or len({label[name] for label in labels.values()}) > 1
    ]
    settings: dict[str, dict[int, SweepJob]] = {}
    for sweep_job in sweep_jobs:
        setting = ", ".join(filter(None, (labels[sweep_job.name][name] for name in telling_names)))
        if "seed" in sweep_job.environment:
            settings.setdefault(setting, {})[sweep_job.seed] = sweep_job
    return settings


def measure_setting(setting: str, jobs_by_seed: Mapping[int, SweepJob]) -> Iterator[SeedRow]:
    """Measure held-out loss and winning score against each baseline, and the AUC of planted defects.

    Seeds in which something was not measured do not count for it. The draws of the random rows (`random`, `random_2`,
    …) are one baseline with several draws in a seed.
    """
    sweep_jobs = [jobs_by_seed[seed] for seed in sorted(jobs_by_seed)]
    for family, baselines in group_draws(sweep_jobs).items():
        for weighting, name in LOSS_NAMES.items():
            loss_difference = estimate_loss_difference(sweep_jobs, baselines, weighting)
            if loss_difference is not None:
                yield SeedRow(setting, f"{name} − that of {family}", loss_difference, 0.0)
    for family, baselines in group_draws(sweep_jobs).items():
        winning_score = estimate_winning_score(sweep_jobs, baselines)
        if winning_score is not None:
            yield SeedRow(setting, f"PWS against {family}", winning_score, 1.0)
    aucs = [
        sweep_job.diagnostics["truth"]["auc"]["scorer"]["value"]
        for sweep_job in sweep_jobs
        if "scorer" in sweep_job.diagnostics.get("truth", {}).get("auc", {})
    ]
    if aucs:
        yield SeedRow(setting, "AUC, clean over planted", estimate_mean_value(aucs, CONFIDENCE, CHANCE_AUC), CHANCE_AUC)


def estimate_loss_difference(
    sweep_jobs: Sequence[SweepJob], baselines: Sequence[str], weighting: LossWeighting
) -> SeedEstimate | None:
    """Estimate the candidate's held-out loss minus the baseline's over runs that differ in their seed alone.

    Args:
        sweep_jobs: a job for each seed; those that did not measure it do not count.
        baselines: names of the baseline's draws.
        weighting: whether each held-out row weighs the same, or each of their tokens.

    Returns:
        Nats per response token; None where no job measured it.
    """
    differences = [_subtract_heldout_losses(sweep_job, baselines, weighting) for sweep_job in sweep_jobs]
    known_differences = [difference for difference in differences if difference is not None]
    return estimate_mean_value(known_differences, CONFIDENCE) if known_differences else None


def estimate_winning_score(sweep_jobs: Sequence[SweepJob], baselines: Sequence[str]) -> SeedEstimate | None:
    """Estimate the PWS against a baseline over runs that differ in their seed alone.

    Args:
        sweep_jobs: a job for each seed; those without a verdict of a usable judge do not count.
        baselines: names of the baseline's draws.

    Returns:
        From 0 to 2; None where no job has a verdict.
    """
    outcomes = [_collect_outcomes(sweep_job, baselines) for sweep_job in sweep_jobs]
    known_outcomes = [draws for draws in outcomes if draws]
    return _shift(estimate_mean_outcome(known_outcomes, CONFIDENCE)) if known_outcomes else None


def group_draws(sweep_jobs: Sequence[SweepJob]) -> dict[str, list[str]]:
    """Group the baselines that differ by the draw of their rows alone: `random`, `random_2`, …."""
    names = dict.fromkeys(
        name
        for sweep_job in sweep_jobs
        for name in (*sweep_job.target_results, *sweep_job.pairwise_scores)
        if name != CANDIDATE
    )
    families: dict[str, list[str]] = {}
    for name in names:
        family = "_".join(part for part in name.split("_") if not part.isdigit())
        families.setdefault(family, []).append(name)
    return families


def _subtract_heldout_losses(sweep_job: SweepJob, baselines: Sequence[str], weighting: LossWeighting) -> float | None:
    """Subtract the baseline's held-out loss, the mean over its draws, from the candidate's."""
    candidate_loss: float | None = sweep_job.candidate_result.get(weighting)
    results = [sweep_job.target_results[name] for name in baselines if name in sweep_job.target_results]
    baseline_losses = [result[weighting] for result in results if result.get(weighting) is not None]
    if candidate_loss is None or not baseline_losses:
        return None
    return float(candidate_loss - sum(baseline_losses) / len(baseline_losses))


def _collect_outcomes(sweep_job: SweepJob, baselines: Sequence[str]) -> list[dict[Hashable, int]]:
    """Collect the outcomes by prompt against each draw of a baseline; none of an unusable judge."""
    if sweep_job.verdicts is None or not sweep_job.has_usable_verdicts:
        return []
    return [outcomes for name in baselines if (outcomes := read_outcomes(sweep_job, name))]


def _shift(estimate: SeedEstimate) -> SeedEstimate:
    """Turn a mean outcome into a winning score, which lies 1 higher."""
    return SeedEstimate(
        value=estimate.value + 1,
        low=None if estimate.low is None else estimate.low + 1,
        high=None if estimate.high is None else estimate.high + 1,
        p=estimate.p,
        seeds=estimate.seeds,
        by_seed=tuple(value + 1 for value in estimate.by_seed),
        prompts=estimate.prompts,
    )
