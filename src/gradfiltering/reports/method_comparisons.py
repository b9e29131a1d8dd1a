"""The settings of a sweep against each other, paired by seed: difference of held-out losses, difference of PWS."""

import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from gradfiltering.errors import UserError
from gradfiltering.reports.paper_tables import PaperTable
from gradfiltering.reports.seed_tables import (
    CONFIDENCE,
    LOSS_NAMES,
    describe_correction,
    group_by_setting,
    group_draws,
    tabulate_estimates,
)
from gradfiltering.reports.sweep_jobs import SweepJob
from gradfiltering.reports.verdict_tables import read_outcomes
from gradfiltering.statistics.seed_intervals import (
    MIN_SEEDS,
    SeedEstimate,
    estimate_mean_outcome,
    estimate_mean_value,
)

METHOD_TABLE = "methods"
DIFFERENCE_BOUNDS = (-2.0, 2.0)  # of two outcomes between -1 and 1
LEAST_SEEDS = 2


@dataclass(frozen=True)
class MethodComparison:
    """A measure of one setting minus that of another, over the seeds that both have.

    Attributes:
        first_setting, second_setting: names.
        measure: in words.
        estimate: the difference with its interval.
    """

    first_setting: str
    second_setting: str
    measure: str
    estimate: SeedEstimate


def build_method_table(
    sweep_jobs: Sequence[SweepJob], varying_options: set[str], reference: str | None = None
) -> PaperTable | None:
    """Build the table of all pairs of settings, corrected by Holm over the whole table.

    Args:
        sweep_jobs: of the sweep.
        varying_options: that differ between jobs and are no axis.
        reference: the setting that all others are compared with, named before the results are seen; None compares
            every two, which takes more tests and leaves less of each.

    Returns:
        None where no two settings have seeds in common.

    Raises:
        UserError: no setting has the reference's name.
    """
    settings = group_by_setting(sweep_jobs, varying_options)
    if reference is not None and reference not in settings:
        raise UserError(f"the sweep has no setting {reference!r}; its settings: {'; '.join(settings)}")
    comparisons = [
        comparison
        for first, second in combinations(settings, 2)
        if reference in (None, first, second)
        for comparison in compare_settings(first, settings[first], second, settings[second])
    ]
    if not comparisons:
        return None
    labels = [
        {
            "setting": comparison.first_setting,
            "minus": comparison.second_setting,
            "measure": comparison.measure,
            "seeds": str(comparison.estimate.seeds),
        }
        for comparison in comparisons
    ]
    table = tabulate_estimates(labels, [comparison.estimate for comparison in comparisons], "difference")
    note = (
        f"{describe_correction(table)} Differences are taken within a seed; their intervals are of {CONFIDENCE:.0%}, "
        f"and fewer than {MIN_SEEDS} common seeds have none."
    )
    return PaperTable(
        METHOD_TABLE, "Settings against each other, paired by seed, held-out loss first.", table, 4, note, signed=True
    )


def compare_settings(
    first: str, first_jobs: Mapping[int, SweepJob], second: str, second_jobs: Mapping[int, SweepJob]
) -> Iterator[MethodComparison]:
    """Compare two settings over their common seeds, two at least, in every measure that both have.

    Held-out losses are compared where data and target model are the same, winning scores where the baseline gave the
    same answers, over the prompts that were judged for both.

    Args:
        first, second: names of the settings.
        first_jobs, second_jobs: their jobs by seed.
    """
    pairs = [(first_jobs[seed], second_jobs[seed]) for seed in sorted(first_jobs.keys() & second_jobs.keys())]
    results = [
        (first_job.candidate_result, second_job.candidate_result)
        for first_job, second_job in pairs
        if _share_rows(first_job, second_job)
    ]
    for weighting, name in LOSS_NAMES.items():
        differences = [
            first_result[weighting] - second_result[weighting]
            for first_result, second_result in results
            if first_result.get(weighting) is not None and second_result.get(weighting) is not None
        ]
        if len(differences) >= LEAST_SEEDS:
            yield MethodComparison(first, second, name, estimate_mean_value(differences, CONFIDENCE))
    for family, baselines in group_draws([job for pair in pairs for job in pair]).items():
        outcomes = [_subtract_outcomes(first_job, second_job, baselines) for first_job, second_job in pairs]
        known_outcomes = [draws for draws in outcomes if draws]
        if len(known_outcomes) >= LEAST_SEEDS:
            estimate = estimate_mean_outcome(known_outcomes, CONFIDENCE, DIFFERENCE_BOUNDS)
            yield MethodComparison(first, second, f"PWS against {family}", estimate)


def _share_rows(first_job: SweepJob, second_job: SweepJob) -> bool:
    """Return True where two jobs of a seed have the same rows, held-out ones included, and the same target model."""
    return bool(
        first_job.options("data") == second_job.options("data")
        and first_job.options("target").get("base_model") == second_job.options("target").get("base_model")
        and first_job.target_model == second_job.target_model
    )


def _subtract_outcomes(
    first_job: SweepJob, second_job: SweepJob, baselines: Sequence[str]
) -> list[dict[Hashable, float]]:
    """Subtract the second job's outcomes from the first's by prompt, for each draw that gave both the same answers."""
    if not (first_job.has_usable_verdicts and second_job.has_usable_verdicts):
        return []
    if first_job.verdicts is None or second_job.verdicts is None:
        return []
    draws = []
    for baseline in baselines:
        if not _gave_same_answers(first_job, second_job, baseline):
            continue
        first_outcomes, second_outcomes = read_outcomes(first_job, baseline), read_outcomes(second_job, baseline)
        shared_prompts = [prompt for prompt in first_outcomes if prompt in second_outcomes]
        if shared_prompts:
            draws.append({prompt: float(first_outcomes[prompt] - second_outcomes[prompt]) for prompt in shared_prompts})
    return draws


def _gave_same_answers(first_job: SweepJob, second_job: SweepJob, baseline: str) -> bool:
    paths = [job.folder.responses_file(baseline) for job in (first_job, second_job)]
    if not all(path.is_file() for path in paths):
        return False
    first_digest, second_digest = (hashlib.sha256(path.read_bytes()).digest() for path in paths)
    return first_digest == second_digest


def strongest_first(table: pd.DataFrame) -> pd.DataFrame:
    """Sort a table of comparisons by p-value; those without one come last."""
    return table.iloc[np.argsort(table["p"].fillna(np.inf).to_numpy(), kind="stable")]
