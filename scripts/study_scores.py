"""Other scores, and fewer members, tried on the gradient logs of a study; no model is run.

    python scripts/study_scores.py FOLDER…

The folders are sweeps whose jobs keep a gradient log and know which rows are planted. The later job of a seed counts.

The first table has, for each score that follows from norms and losses of the two snapshots, the AUC of clean over
planted rows and the share of clean rows among as many of the best as the job chose, less that among all rows; then the
AUC of G-SNR less those of the other scores, seed by seed. The second compares groups of members of one ensemble by
G-SNR, the relative drop, the late norm and the variance: Spearman's correlation, and the share of the top tenth in
common, averaged over the pairs of groups. Groups that are part of all members agree with them for that reason alone;
groups without a common member show how far a ranking repeats. The third has the AUC of G-SNR that fewer members lose.

Values are means over seeds; intervals are of 95 %, over seeds, from three seeds on; a star marks what is left after
Holm's correction over all tests of a table.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean

import numpy as np
import pandas as pd
from study_tables import AREA, estimate_row, share_top, write_estimates

from gradfiltering.diagnostics.planted_truth import area_under_curve
from gradfiltering.reports.seed_tables import SeedRow
from gradfiltering.reports.sweep_jobs import SweepJob, read_jobs
from gradfiltering.scorers.gradient_statistics import gradient_statistics
from gradfiltering.scorers.gsnr import GSNR
from gradfiltering.scorers.inverse_variance import InverseVariance
from gradfiltering.scorers.normalized_drop import NormalizedDrop
from gradfiltering.scorers.raw_drop import RawDrop
from gradfiltering.scorers.variance_only import VarianceOnly
from gradfiltering.statistics.rank_correlation import spearman_correlation
from gradfiltering.statistics.stability import select_top

CLEAN = "clean"
CLEAN_SHARE = "clean rows among the chosen"
GSNR_NAME, DROP, LATE_NORM, SMALL_VARIANCE = (
    "G-SNR",
    "relative drop",
    "late norm, smallest first",
    "V_t, smallest first",
)
RowScores = dict[str, np.ndarray]
Group = tuple[int, ...]


def main(command_line: Sequence[str] | None = None) -> None:
    """Read the jobs and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="of sweeps")
    arguments = parser.parse_args(command_line)
    jobs = find_jobs([job for folder in arguments.folders for job in read_jobs(folder)])
    if not jobs:
        raise SystemExit("no job has a gradient log, planted rows and chosen rows")
    print("\n\n".join([write_scores(jobs), *write_members(jobs)]))


def find_jobs(sweep_jobs: Sequence[SweepJob]) -> list[SweepJob]:
    """Find the last job of each seed that has all that the tables need."""
    usable = {
        job.seed: job
        for job in sweep_jobs
        if job.gradient_log is not None and job.planted_kinds is not None and job.selected_ids is not None
    }
    return [usable[seed] for seed in sorted(usable)]


# Scores.


def write_scores(jobs: Sequence[SweepJob]) -> str:
    """Write AUC and share of clean rows of each score, and G-SNR's differences."""
    areas: defaultdict[str, list[float]] = defaultdict(list)
    clean_shares: defaultdict[str, list[float]] = defaultdict(list)
    pool_shares = []
    for job in jobs:
        is_clean, chosen_count = find_clean_rows(job)
        pool_shares.append(float(is_clean.mean()))
        for name, row_scores in score_rows(job).items():
            areas[name].append(area_under_curve(row_scores, is_clean))
            clean_shares[name].append(float(is_clean[select_top(row_scores, chosen_count)].mean()))
    rows: list[SeedRow] = []
    for name, values in areas.items():
        rows.append(estimate_row(name, AREA, values, null_value=0.5))
        above_pool = [share - pool_share for share, pool_share in zip(clean_shares[name], pool_shares, strict=True)]
        rows.append(estimate_row(name, f"{CLEAN_SHARE} − of all", above_pool))
    for name, values in areas.items():
        if name != GSNR_NAME:
            differences = [first - second for first, second in zip(areas[GSNR_NAME], values, strict=True)]
            rows.append(estimate_row(f"{GSNR_NAME} − {name}", AREA, differences))
    title = f"Scores from the gradient logs of {len(jobs)} seeds; {fmean(pool_shares):.1%} of the rows are clean."
    return f"{title}\n\n{write_estimates(rows)}"


def find_clean_rows(job: SweepJob) -> tuple[np.ndarray, int]:
    """Return which of the logged rows are clean, [N], and how many rows the job chose."""
    assert job.gradient_log is not None and job.planted_kinds is not None and job.selected_ids is not None
    example_ids = job.gradient_log.epoch(job.epochs.late).example_ids
    return np.asarray(job.planted_kinds)[example_ids] == CLEAN, len(job.selected_ids)


def score_rows(job: SweepJob) -> RowScores:
    """Score the logged rows: name of the score -> [N], the largest best."""
    assert job.gradient_log is not None
    early_norms, late_norms = job.compared_norms
    norm_statistics = gradient_statistics(early_norms, late_norms, ddof=0)
    late_loss = job.gradient_log.epoch(job.epochs.late).loss.mean(axis=0, dtype=np.float64)
    scorers = {
        GSNR_NAME: GSNR(), DROP: NormalizedDrop(), "drop": RawDrop(), "drop over variance": VarianceOnly(),
        SMALL_VARIANCE: InverseVariance(),
    }  # fmt: skip
    return {
        **{name: scorer.score_norms(early_norms, late_norms) for name, scorer in scorers.items()},
        "early norm, smallest first": -norm_statistics.early_norm,
        LATE_NORM: -norm_statistics.late_norm,
        "members' loss, smallest first": -late_loss,
    }


# Members.


def write_members(jobs: Sequence[SweepJob]) -> list[str]:
    """Write how rankings of groups of members agree, and the AUC that fewer members lose."""
    agreements: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    lost_areas: defaultdict[str, list[float]] = defaultdict(list)
    for job in jobs:
        scores_of_groups = score_groups(job)
        for key, value in measure_agreement(scores_of_groups).items():
            agreements[key].append(value)
        for compared, lost_area in measure_lost_areas(scores_of_groups, find_clean_rows(job)[0]).items():
            lost_areas[compared].append(lost_area)
    if not agreements:
        return ["No job has three members or more, so none has groups to compare."]
    cells: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for (compared, measure), values in agreements.items():
        estimate = estimate_row(compared, measure, values).estimate
        is_interval = estimate.low is not None and estimate.high is not None
        interval = f" [{estimate.low:.3f}, {estimate.high:.3f}]" if is_interval else ""
        cells[compared][measure] = f"{estimate.value:.3f}{interval}"
    agreement_table = pd.DataFrame(cells).T.rename_axis("groups").to_markdown(disable_numparse=True)
    lost_rows = [estimate_row(compared, "AUC lost", values) for compared, values in lost_areas.items()]
    return [
        f"Agreement of groups of members of one ensemble.\n\n{agreement_table}",
        f"AUC of G-SNR with all members less that with so few.\n\n{write_estimates(lost_rows)}",
    ]


def score_groups(job: SweepJob) -> dict[Group, RowScores]:
    """Score the logged rows by each group of two members or more."""
    early_norms, late_norms = job.compared_norms
    members = range(len(late_norms))
    return {
        group: score_group(early_norms[list(group)], late_norms[list(group)])
        for size in range(2, len(members) + 1)
        for group in combinations(members, size)
    }


def measure_agreement(scores_of_groups: Mapping[Group, RowScores]) -> dict[tuple[str, str], float]:
    """Compare rankings of groups: (groups, measure) -> mean over the pairs of groups."""
    measured: dict[tuple[str, str], float] = {}
    for compared, pairs in list_group_pairs(max(map(len, scores_of_groups), default=0)):
        for name in (GSNR_NAME, DROP, LATE_NORM, SMALL_VARIANCE):
            for measure, compare in COMPARISONS.items():
                values = [
                    compare(scores_of_groups[first][name], scores_of_groups[second][name]) for first, second in pairs
                ]
                measured[compared, f"{name}: {measure}"] = fmean(values)
    return measured


def measure_lost_areas(scores_of_groups: Mapping[Group, RowScores], is_clean: np.ndarray) -> dict[str, float]:
    """Measure the AUC of G-SNR with all members less that with fewer, averaged over the groups of a size."""
    areas: defaultdict[int, list[float]] = defaultdict(list)
    for group, scores in scores_of_groups.items():
        areas[len(group)].append(area_under_curve(scores[GSNR_NAME], is_clean))
    member_count = max(areas, default=0)
    return {
        f"{size} members of {member_count}": fmean(areas[member_count]) - fmean(areas[size])
        for size in sorted(areas)
        if size < member_count
    }


COMPARISONS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "ρ": lambda first, second: float(spearman_correlation(first, second) or 0.0),
    "top tenth in common": share_top,
}


def list_group_pairs(member_count: int) -> Iterator[tuple[str, list[tuple[Group, Group]]]]:
    """List the pairs of groups that are compared: parts with all members, and groups without a common member."""
    everyone = tuple(range(member_count))
    for size in range(2, member_count):
        yield f"{size} members with all {member_count}", [(group, everyone) for group in combinations(everyone, size)]
    for size in range(2, member_count // 2 + 1):
        for other_size in range(size, member_count - size + 1):
            pairs = [
                (group, other_group)
                for group in combinations(everyone, size)
                for other_group in combinations(everyone, other_size)
                if not set(group) & set(other_group) and (size < other_size or group < other_group)
            ]
            yield f"{size} members with {other_size} others", pairs


def score_group(early_norms: np.ndarray, late_norms: np.ndarray) -> RowScores:
    """Score rows by the [M, N] norms of some members."""
    norm_statistics = gradient_statistics(early_norms, late_norms, ddof=0)
    return {
        GSNR_NAME: GSNR().score_norms(early_norms, late_norms),
        DROP: NormalizedDrop().score_norms(early_norms, late_norms),
        LATE_NORM: -norm_statistics.late_norm,
        SMALL_VARIANCE: -norm_statistics.late_variance,
    }


if __name__ == "__main__":
    main()
