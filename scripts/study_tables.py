"""Tables of the studies, from the folders of their sweeps; several folders count as one sweep.

    python scripts/study_tables.py methods FOLDER… [--compare FIRST SECOND]…
    python scripts/study_tables.py tasks FOLDER…
    python scripts/study_tables.py kinds FOLDER…
    python scripts/study_tables.py variance FOLDER… --factors seed ensemble.lr epochs ensemble.m
    python scripts/study_tables.py gradients FOLDER…

`methods`: a row for each setting, the lowest held-out loss first, with the composition and cost of what it selected;
and the differences between pairs of settings (`--compare`, else every two), seed by seed. Minutes are those that
selecting took, or would have taken without the cache, and are as noisy as the machine. `tasks`: held-out loss of each
task, metrics of the answers to its held-out questions where a judge had them written, the tasks' shares among the
chosen rows, and how the tasks' mean gradients point to each other. `kinds`: how often
rows of a planted kind are chosen against their share of the pool, and their losses at both snapshots. `variance`:
shares of the variance of AUC and of overlap with the largest setting's choice that each factor of a full design
explains. `gradients`: the variance over members against losses, rankings by other scales of the same gradients, and
agreement of norms between settings.

A setting is what differs between the jobs beside the seed. Values are means over seeds; intervals are of 95 %, over
seeds, from three seeds on; a star marks what is left after Holm's correction over all tests of a table.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from gradfiltering.judging.prompts import is_heldout_set
from gradfiltering.reports.screen import HELD_OUT
from gradfiltering.reports.seed_tables import CONFIDENCE, LOSS_NAMES, LossWeighting, SeedRow, measure_setting
from gradfiltering.reports.sweep_jobs import INDIFFERENT_OPTIONS, SweepJob, option_name, read_jobs
from gradfiltering.runs.gradient_log import partition_folder
from gradfiltering.runs.run_folder import PROJECTION_FILE, PROJECTIONS
from gradfiltering.scorers.gradient_statistics import gradient_statistics
from gradfiltering.scorers.gsnr import GSNR
from gradfiltering.scorers.normalized_drop import NormalizedDrop
from gradfiltering.statistics.paired_comparison import correct_by_holm
from gradfiltering.statistics.rank_correlation import spearman_correlation
from gradfiltering.statistics.rounding import share_of_count
from gradfiltering.statistics.seed_intervals import estimate_mean_value
from gradfiltering.statistics.stability import select_top
from gradfiltering.statistics.variance_shares import share_variance
from gradfiltering.synthetic.planted_defects import DEFECT_KINDS

TOP_SHARE = 0.1
AREA = "AUC, clean over planted"

JobsBySetting = dict[str, dict[int, SweepJob]]


def main(command_line: Sequence[str] | None = None) -> None:
    """Read the jobs and print the tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=list(TABLES))
    parser.add_argument("folders", type=Path, nargs="+", help="of sweeps")
    parser.add_argument("--compare", nargs=2, action="append", default=[], metavar=("FIRST", "SECOND"))
    parser.add_argument("--factors", nargs="+", default=[], help="options of a full design, `seed` among them")
    arguments = parser.parse_args(command_line)
    sweep_jobs = [job for folder in arguments.folders for job in read_jobs(folder)]
    print("\n\n".join(TABLES[arguments.table](sweep_jobs, arguments)))


# Settings and their estimates.


def group_jobs(sweep_jobs: Sequence[SweepJob]) -> JobsBySetting:
    """Group jobs by the options that differ between them, then by seed; of two alike the later counts."""
    all_options = [read_options(job) for job in sweep_jobs]
    names = dict.fromkeys(name for options in all_options for name in options)
    varying_names = [
        name
        for name in names
        if name.partition(".")[0] not in INDIFFERENT_OPTIONS and len({options.get(name) for options in all_options}) > 1
    ]
    settings: JobsBySetting = {}
    for job, options in zip(sweep_jobs, all_options, strict=True):
        values = [name_setting(name, options[name]) for name in varying_names if options.get(name, "null") != "null"]
        settings.setdefault(", ".join(values) or "all jobs", {})[job.seed] = job
    return settings


def name_setting(option: str, value: str) -> str:
    """Name a value by itself where its option says nothing more, else with the option's last word."""
    return value if option in ("method", "scorer", "ensemble") else f"{option.rpartition('.')[2]}={value}"


def read_options(job: SweepJob) -> dict[str, str]:
    """Read the overrides of a job's command line: option -> value."""
    return {option_name(override): override.partition("=")[2] for override in job.overrides}


def estimate_row(setting: str, measure: str, seed_values: Iterable[float | None], null_value: float = 0.0) -> SeedRow:
    """Estimate a measure over the seeds that have it."""
    values = [value for value in seed_values if value is not None]
    return SeedRow(setting, measure, estimate_mean_value(values, CONFIDENCE, null_value), null_value)


def write_estimates(rows: Sequence[SeedRow], extra_cells: Mapping[str, Mapping[str, str]] | None = None) -> str:
    """Write a Markdown table, a line for each setting and a column for each measure, with Holm over its tests.

    Args:
        rows: the estimates.
        extra_cells: setting -> further columns.
    """
    tested_rows = [row for row in rows if row.estimate.p is not None]
    corrected = correct_by_holm([row.estimate.p for row in tested_rows if row.estimate.p is not None])
    p_values = {(row.setting, row.measure): p for row, p in zip(tested_rows, corrected, strict=True)}
    lines: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        cells = lines[row.setting]
        cells["seeds"] = str(max(row.estimate.seeds, int(cells.get("seeds", 0))))
        cells[row.measure] = format_estimate(row, p_values.get((row.setting, row.measure)))
    for row in rows:  # which other seeds lack
        if row.estimate.seeds < int(lines[row.setting]["seeds"]):
            lines[row.setting][row.measure] += f" ({row.estimate.seeds} seeds)"
    for setting, further_cells in (extra_cells or {}).items():
        lines[setting].update(further_cells)
    measures = dict.fromkeys(["seeds", *(row.measure for row in rows)])  # further columns follow
    columns = dict.fromkeys([*measures, *(name for cells in lines.values() for name in cells)])
    table = pd.DataFrame(lines).T.reindex(columns=list(columns)).fillna("–").rename_axis("setting")
    return f"{table.to_markdown(disable_numparse=True)}\n\n{len(tested_rows)} tests, corrected by Holm's method."


def format_estimate(row: SeedRow, p_holm: float | None) -> str:
    """Write a value, with interval and corrected p-value where it has them."""
    estimate = row.estimate
    if estimate.low is None or estimate.high is None or p_holm is None:
        return f"{estimate.value:.3f}"
    star = "\\*" if p_holm < 1 - CONFIDENCE else ""
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]{star} p = {p_holm:.2g}"


# Methods.


def write_methods(sweep_jobs: Sequence[SweepJob], arguments: argparse.Namespace) -> list[str]:
    """Write each setting against its baselines, and pairs of settings against each other."""
    settings = group_jobs(sweep_jobs)
    costs = {setting: describe_selections(list(jobs.values())) for setting, jobs in settings.items()}
    lowest_loss_first = sorted(settings, key=lambda setting: average_heldout_loss(settings[setting].values()))
    pairs = arguments.compare or list(combinations(settings, 2))
    unknown_names = {name for pair in pairs for name in pair} - set(settings)
    if unknown_names:
        raise SystemExit(f"no setting {', '.join(sorted(unknown_names))}; there are {', '.join(settings)}")
    differences = [row for first, second in pairs for row in compare_settings(settings, first, second)]
    rows = [row for setting in lowest_loss_first for row in measure_setting(setting, settings[setting])]
    tables = [write_estimates(rows, costs)]
    return [*tables, write_estimates(differences)] if differences else tables


def average_heldout_loss(jobs: Iterable[SweepJob]) -> float:
    """Average the candidate's held-out loss over the jobs that have it; infinite where none has."""
    losses = [loss for job in jobs if (loss := read_heldout_loss("heldout_loss", job)) is not None]
    return fmean(losses) if losses else float("inf")


def describe_selections(jobs: Sequence[SweepJob]) -> dict[str, str]:
    """Describe which share of the selected rows is of each kind of planted defect, and what selecting cost."""
    cells = {}
    shares = [(job.diagnostics.get("truth") or {}).get("share", {}) for job in jobs]
    for kind in DEFECT_KINDS:
        selected = [share[kind]["selected"] for share in shares if kind in share]
        if selected:
            cells[f"{kind} %"] = f"{100 * fmean(selected):.1f}"
    cells["minutes of selecting"] = f"{fmean(job.selecting_seconds for job in jobs) / 60:.1f}"
    peaks = [cost["peak_bytes"] for job in jobs for cost in job.summary.get("cost", {}).values()]
    if peaks:
        cells["peak GiB"] = f"{max(peaks) / 2**30:.2f}"
    return cells


def compare_settings(settings: JobsBySetting, first: str, second: str) -> list[SeedRow]:
    """Compare two settings on the seeds that both have: first minus second."""
    seeds = sorted(settings[first].keys() & settings[second].keys())
    rows = []
    readers: dict[str, Callable[[SweepJob], float | None]] = {
        name: partial(read_heldout_loss, weighting) for weighting, name in LOSS_NAMES.items()
    }
    for measure, read_value in {**readers, AREA: read_area}.items():
        values = [(read_value(settings[first][seed]), read_value(settings[second][seed])) for seed in seeds]
        differences = [
            first_value - second_value
            for first_value, second_value in values
            if first_value is not None and second_value is not None
        ]
        if differences:
            rows.append(estimate_row(f"{first} − {second}", measure, differences))
    return rows


def read_heldout_loss(weighting: LossWeighting, job: SweepJob) -> float | None:
    """Read the candidate's held-out loss, nats per response token."""
    loss: float | None = job.summary.get("target", {}).get("candidate", {}).get(weighting)
    return loss


def read_area(job: SweepJob) -> float | None:
    """Read the AUC of clean over planted rows."""
    area: float | None = job.diagnostics.get("truth", {}).get("auc", {}).get("scorer", {}).get("value")
    return area


# Tasks.


def write_tasks(sweep_jobs: Sequence[SweepJob], arguments: argparse.Namespace) -> list[str]:
    """Write held-out losses by task, the tasks' shares among the chosen, and the cosines of their gradients."""
    settings = group_jobs(sweep_jobs)
    loss_rows, metric_rows, share_rows, cosine_rows = [], [], [], []
    for setting, jobs in settings.items():
        for task in list_names(read_task_losses(job) for job in jobs.values()):
            losses = [read_task_losses(job).get(task) for job in jobs.values()]
            loss_rows.append(estimate_row(setting, f"{task}: held-out loss − that of random", losses))
        for name in list_names(read_task_metrics(job) for job in jobs.values()):
            metrics = [read_task_metrics(job).get(name) for job in jobs.values()]
            metric_rows.append(estimate_row(setting, f"{name} − that of random", metrics))
        for task in list_names(read_recalls(job) for job in jobs.values()):
            recalls = [read_recalls(job).get(task) for job in jobs.values()]
            share_rows.append(estimate_row(setting, f"{task}: share of its rows chosen − that of all rows", recalls))
        cosines = [measure_task_cosines(job) for job in jobs.values()]
        for pair in list_names(cosines):
            cosine_rows.append(estimate_row(setting, pair, [job_cosines.get(pair) for job_cosines in cosines]))
    titles = (
        (loss_rows, "Held-out loss of each task."),
        (metric_rows, "Answers to the held-out questions of each task, shares of 1."),
        (share_rows, "Share of each task's rows that was chosen, less that of all rows."),
        (cosine_rows, "Cosine between the tasks' mean gradients at the late snapshot, within a member, averaged."),
    )
    return [f"{title}\n\n{write_estimates(rows)}" for rows, title in titles if rows]


def list_names(tables: Iterable[Mapping[str, Any]]) -> list[str]:
    """List the names that any table has, in order of appearance."""
    return list(dict.fromkeys(name for table in tables for name in table))


def read_task_losses(job: SweepJob) -> dict[str, float]:
    """Read the candidate's held-out loss less that of the random draws, by task."""
    models = job.summary.get("target", {})
    random_losses = [model.get("heldout_by_source", {}) for name, model in models.items() if is_random_draw(name)]
    candidate_losses = models.get("candidate", {}).get("heldout_by_source", {})
    return {
        task: loss - fmean(losses[task] for losses in random_losses)
        for task, loss in candidate_losses.items()
        if random_losses
    }


def read_task_metrics(job: SweepJob) -> dict[str, float]:
    """Read the metrics of the candidate's answers less those of the random draws, by task."""
    models = job.summary.get("metrics", {})
    random_metrics = [sets for name, sets in models.items() if is_random_draw(name)]
    differences = {}
    for set_name, values in models.get("candidate", {}).items():
        if not is_heldout_set(set_name) or not random_metrics:
            continue
        for metric in ("chrf", "final_number"):
            if values[metric] is not None:
                random_mean = fmean(sets[set_name][metric] for sets in random_metrics)
                differences[f"{set_name.partition('_')[2] or set_name}: {metric}"] = values[metric] - random_mean
    return differences


def is_random_draw(model_name: str) -> bool:
    """Return True for a model trained on a random draw, for as many epochs as the candidate."""
    return model_name.startswith("random") and not model_name.endswith("_same_updates")


def read_recalls(job: SweepJob) -> dict[str, float]:
    """Read the share of each task's rows that was chosen, less that of all rows."""
    shares = job.diagnostics.get("sources", {}).get("share", {})
    reasons = job.summary.get("data", {}).get("unscored_reasons", {})
    heldout_rows = sum(count for reason, count in reasons.items() if reason.startswith(HELD_OUT))
    pool_rows = min(job.counted_rows, job.row_count - heldout_rows)
    chosen_share = (0 if job.selected_ids is None else len(job.selected_ids)) / max(pool_rows, 1)
    return {task: chosen_share * (share["selected"] / share["pool"] - 1) for task, share in shares.items()}


def measure_task_cosines(job: SweepJob) -> dict[str, float]:
    """Measure the cosine between the mean projected gradients of every two tasks; empty without projections."""
    projections, row_ids = read_projections(job)
    if projections is None or job.row_texts is None:
        return {}
    sources = job.row_texts["source"].to_numpy()[row_ids]
    cosines = {}
    for first, second in combinations(sorted(set(sources)), 2):
        means = [projections[:, sources == source].mean(axis=1, dtype=np.float64) for source in (first, second)]
        lengths = [np.linalg.norm(mean, axis=1) for mean in means]
        products = np.einsum("mk,mk->m", *means)
        cosines[f"{first}, {second}"] = float(np.mean(products / np.maximum(lengths[0] * lengths[1], 1e-300)))
    return cosines


def read_projections(job: SweepJob) -> tuple[np.ndarray | None, np.ndarray]:
    """Read the projections of a run, [M, N, K], and the rows' ids, [N]; None where the run made none."""
    log = job.gradient_log
    if log is None or not (job.path / PROJECTIONS).is_dir():
        return None, np.zeros(0, dtype=np.int64)
    late = log.epochs[-1]
    files = [
        partition_folder(job.path / PROJECTIONS, member, late, log.unit) / PROJECTION_FILE for member in log.members
    ]
    if not all(file.is_file() for file in files):
        return None, np.zeros(0, dtype=np.int64)
    return np.stack([np.load(file) for file in files]), log.epoch(late).example_ids


# Planted kinds.


def write_kinds(sweep_jobs: Sequence[SweepJob], arguments: argparse.Namespace) -> list[str]:
    """Write how often rows of each planted kind are chosen, and their losses at both snapshots."""
    rate_rows, loss_rows = [], []
    for setting, jobs in group_jobs(sweep_jobs).items():
        rates = [read_kind_rates(job) for job in jobs.values()]
        for kind in list_names(rates):
            rate_rows.append(estimate_row(setting, kind, [rate.get(kind) for rate in rates], null_value=1.0))
        losses = [measure_kind_losses(job) for job in jobs.values()]
        for name in list_names(losses):
            loss_rows.append(estimate_row(setting, name, [loss.get(name) for loss in losses]))
    losses_table = pd.DataFrame()
    for row in loss_rows:
        losses_table.loc[row.setting, row.measure] = f"{row.estimate.value:.3f}"
    tables = [
        "Share of each kind among the chosen over its share of the pool, tested against 1.\n\n"
        + write_estimates(rate_rows)
    ]
    if loss_rows:
        lines = losses_table.fillna("–").rename_axis("setting").to_markdown(disable_numparse=True)
        tables.append(f"Mean loss of each kind at the snapshots, nats per response token.\n\n{lines}")
    return tables


def read_kind_rates(job: SweepJob) -> dict[str, float]:
    """Read each planted kind's share among the chosen rows over its share of the pool."""
    shares = job.diagnostics.get("truth", {}).get("share", {})
    return {kind: share["selected"] / share["pool"] for kind, share in shares.items()}


def measure_kind_losses(job: SweepJob) -> dict[str, float]:
    """Average the members' losses of each planted kind at the early and the late snapshot."""
    if job.gradient_log is None or job.planted_kinds is None:
        return {}
    row_kinds, losses = np.asarray(job.planted_kinds), {}
    for name, epoch in zip(("early", "late"), job.epochs, strict=True):
        log = job.gradient_log.epoch(epoch)
        for kind in sorted(set(job.planted_kinds)):
            losses[f"{kind}, {name}"] = float(log.loss[:, row_kinds[log.example_ids] == kind].mean(dtype=np.float64))
    return losses


# Variance of the outcome.


def write_variance(sweep_jobs: Sequence[SweepJob], arguments: argparse.Namespace) -> list[str]:
    """Write the shares of the outcomes' variance that the factors explain."""
    factors = arguments.factors
    if len(factors) < 2:
        raise SystemExit("name the factors of the design: --factors seed ensemble.m …")
    levels = {job: tuple(read_level(job, factor) for factor in factors) for job in sweep_jobs}
    measures: dict[str, dict[tuple[Hashable, ...], float]] = {"AUC": {}, "overlap with the largest setting": {}}
    largest = find_largest(levels)
    for job, cell in levels.items():
        area, overlap = read_area(job), measure_overlap(job, largest[read_level(job, "seed")])
        if area is not None:
            measures["AUC"][cell] = area
        if overlap is not None:
            measures["overlap with the largest setting"][cell] = overlap
    lines = {
        factor: {
            f"{measure}, {name}": f"{value:.1%}"
            for measure, outcomes in measures.items()
            if len(set(outcomes.values())) > 1
            for share in share_variance(outcomes, factors)
            if share.factor == factor
            for name, value in (("first order", share.first_order), ("total", share.total))
        }
        for factor in factors
    }
    means = [
        {"factor": factor, "level": level, **{
            measure: f"{fmean(value for cell, value in outcomes.items() if cell[index] == level):.3f}"
            for measure, outcomes in measures.items() if outcomes
        }}
        for index, factor in enumerate(factors)
        for level in dict.fromkeys(cell[index] for cell in levels.values())
    ]  # fmt: skip
    shares_table = pd.DataFrame(lines).T.fillna("–").rename_axis("factor").to_markdown(disable_numparse=True)
    means_table = pd.DataFrame(means).to_markdown(index=False, disable_numparse=True)
    return [f"Shares of the variance over {len(levels)} jobs.\n\n{shares_table}", f"Means.\n\n{means_table}"]


def read_level(job: SweepJob, factor: str) -> str:
    """Read a job's level of a factor from its overrides."""
    if factor == "seed":
        return str(job.seed)
    options = read_options(job)
    if factor not in options:
        raise SystemExit(f"job {job.path} sets no {factor}; name options that every job of the sweep sets")
    return options[factor]


def find_largest(sweep_jobs: Iterable[SweepJob]) -> dict[str, SweepJob]:
    """Find each seed's largest setting: the most members, then the latest pair of snapshots, then the highest rate."""

    def size(job: SweepJob) -> tuple[float, float, float, float]:
        ensemble = job.config["ensemble"]
        return (float(ensemble["m"]), float(job.epochs.late), float(job.epochs.early), float(ensemble.get("lr", 0.0)))

    largest: dict[str, SweepJob] = {}
    for job in sweep_jobs:
        seed = str(job.seed)
        if seed not in largest or size(job) > size(largest[seed]):
            largest[seed] = job
    return largest


def measure_overlap(job: SweepJob, other_job: SweepJob) -> float | None:
    """Measure the Jaccard index of the rows that two jobs chose."""
    if job.selected_ids is None or other_job.selected_ids is None:
        return None
    union = np.union1d(job.selected_ids, other_job.selected_ids)
    return len(np.intersect1d(job.selected_ids, other_job.selected_ids)) / len(union)


# Gradients.


def write_gradients(sweep_jobs: Sequence[SweepJob], arguments: argparse.Namespace) -> list[str]:
    """Write what the variance follows, what the scale of gradients changes, and how settings agree."""
    settings = {
        setting: {seed: job for seed, job in jobs.items() if job.gradient_log is not None}
        for setting, jobs in group_jobs(sweep_jobs).items()
    }
    tables = []
    for title, measure_job in (
        ("Spearman's correlation of the variance over members with losses, late snapshot.", correlate_variance),
        ("Sums and √n-normalised gradients against means: rank correlation, shared top tenth.", compare_scales),
        ("Pull of a row along the mean gradient, ranked by sums, means and unit vectors.", compare_directions),
    ):
        rows = [
            row
            for setting, jobs in settings.items()
            for row in estimate_measures(setting, [measure_job(job) for job in jobs.values()])
        ]
        if rows:
            tables.append(f"{title}\n\n{write_estimates(rows)}")
    agreement_rows = [
        row
        for first, second in combinations(settings, 2)
        for row in estimate_measures(
            f"{first} with {second}",
            [
                correlate_jobs(settings[first][seed], settings[second][seed])
                for seed in sorted(settings[first].keys() & settings[second].keys())
            ],
        )
    ]
    if agreement_rows:
        tables.append(f"Spearman's correlation of the same rows' gradients.\n\n{write_estimates(agreement_rows)}")
    return tables


def estimate_measures(setting: str, seed_measures: Sequence[Mapping[str, float | None]]) -> list[SeedRow]:
    """Estimate each measure over seeds."""
    names = list_names(seed_measures)
    rows = []
    for name in names:
        values = [measures[name] for measures in seed_measures if measures.get(name) is not None]
        if values:
            rows.append(estimate_row(setting, name, values))
    return rows


def correlate_variance(job: SweepJob) -> dict[str, float | None]:
    """Correlate V_t, and V_t/G_t², with the members' mean loss of trained and of held-out rows."""
    correlations = {}
    for name, log in (("trained", job.gradient_log), ("held-out", job.folder.read_gradient_log(heldout=True))):
        if log is None or len(log.members) < 2:
            continue
        late_log = log.epoch(job.epochs.late)
        if not late_log.has_norms:  # of held-out rows they are measured with report.heldout_norms=true
            continue
        norms, losses = late_log.grad_norm.astype(np.float64), late_log.loss.astype(np.float64).mean(axis=0)
        variance, mean_norm = norms.var(axis=0), norms.mean(axis=0)
        relative = variance / np.maximum(mean_norm**2, np.finfo(float).tiny)
        correlations[f"V with loss, {name} rows"] = spearman_correlation(variance, losses)
        correlations[f"V/G² with loss, {name} rows"] = spearman_correlation(relative, losses)
        correlations[f"V with G, {name} rows"] = spearman_correlation(variance, mean_norm)
    return correlations


def compare_scales(job: SweepJob) -> dict[str, float | None]:
    """Compare norms and G-SNR of gradients of the mean loss with those of the sum, and of the sum over √n."""
    assert job.gradient_log is not None
    early_log, late_log = (job.gradient_log.epoch(epoch) for epoch in job.epochs)
    early_norms, late_norms = (log.grad_norm.astype(np.float64) for log in (early_log, late_log))
    tokens = late_log.response_tokens.astype(np.float64)
    measures: dict[str, float | None] = {}
    for name, factors in (("sum", tokens), ("sum/√n", np.sqrt(tokens))):
        measures[f"G, {name}"] = spearman_correlation(late_norms.mean(axis=0), (factors * late_norms).mean(axis=0))
        if len(late_norms) > 1:
            plain_scores = GSNR().score_norms(early_norms, late_norms)
            scaled_scores = GSNR().score_norms(factors * early_norms, factors * late_norms)
            measures[f"G-SNR, {name}"] = spearman_correlation(plain_scores, scaled_scores)
            measures[f"shared top tenth, {name}"] = share_top(plain_scores, scaled_scores)
    return measures


def compare_directions(job: SweepJob) -> dict[str, float | None]:
    """Compare rows by the product of their gradient with its mean over rows: of means, of sums, of unit vectors."""
    projections, row_ids = read_projections(job)
    if projections is None:
        return {}
    assert job.gradient_log is not None
    log = job.gradient_log.epoch(job.gradient_log.epochs[-1])
    tokens = log.response_tokens[np.searchsorted(log.example_ids, row_ids)].astype(np.float64)
    wide = projections.astype(np.float64)  # [M, N, K]
    lengths = np.maximum(np.linalg.norm(wide, axis=2, keepdims=True), np.finfo(float).tiny)
    pulls = {}
    for name, vectors in (("mean", wide), ("sum", wide * tokens[None, :, None]), ("unit", wide / lengths)):
        pulls[name] = np.einsum("mnk,mk->n", vectors, vectors.mean(axis=1)) / len(wide)
    return {
        f"{first} with {second}": spearman_correlation(pulls[first], pulls[second])
        for first, second in combinations(pulls, 2)
    }


def share_top(first_scores: np.ndarray, second_scores: np.ndarray) -> float:
    """Return the share of the top tenth that two rankings have in common."""
    count = max(share_of_count(TOP_SHARE, len(first_scores)), 1)
    return int((select_top(first_scores, count) & select_top(second_scores, count)).sum()) / count


def correlate_jobs(first_job: SweepJob, second_job: SweepJob) -> dict[str, float | None]:
    """Correlate what two jobs measured of the same rows; variances and G-SNR where both have several members."""
    first_table, second_table = tabulate_norms(first_job), tabulate_norms(second_job)
    shared_ids = first_table.index.intersection(second_table.index)
    shared_columns = [name for name in first_table.columns if name in second_table.columns]
    measures: dict[str, float | None] = {
        name: spearman_correlation(
            first_table.loc[shared_ids, name].to_numpy(), second_table.loc[shared_ids, name].to_numpy()
        )
        for name in shared_columns
    }
    if "G-SNR" in shared_columns:
        scores = [table.loc[shared_ids, "G-SNR"].to_numpy() for table in (first_table, second_table)]
        measures["shared top tenth by G-SNR"] = share_top(*scores)
    return measures


def tabulate_norms(job: SweepJob) -> pd.DataFrame:
    """Tabulate norms over the members, by example id: their means, and variance and G-SNR of several members."""
    assert job.gradient_log is not None
    early_norms, late_norms = job.compared_norms
    norm_statistics = gradient_statistics(early_norms, late_norms, ddof=0)
    columns = {
        "early norm": norm_statistics.early_norm,
        "late norm": norm_statistics.late_norm,
        "relative drop": NormalizedDrop().score_norms(early_norms, late_norms),
    }
    if len(late_norms) > 1:
        columns["V_t"] = norm_statistics.late_variance
        columns["G-SNR"] = GSNR().score_norms(early_norms, late_norms)
    return pd.DataFrame(columns, job.gradient_log.epoch(job.epochs.late).example_ids)


TABLES: dict[str, Callable[[Sequence[SweepJob], argparse.Namespace], list[str]]] = {
    "methods": write_methods,
    "tasks": write_tasks,
    "kinds": write_kinds,
    "variance": write_variance,
    "gradients": write_gradients,
}

if __name__ == "__main__":
    main()
