"""The verdict on the subset of a run, or of a setting over its seeds, with the command that would settle it."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from gradfiltering.diagnostics.failures import FORBIDDING_DIAGNOSTICS
from gradfiltering.reports.data_lines import proxy_knows_rows
from gradfiltering.reports.paper_tables import PaperTable
from gradfiltering.reports.run_files import RunFiles
from gradfiltering.reports.seed_tables import (
    CONFIDENCE,
    estimate_loss_difference,
    estimate_winning_score,
    group_by_setting,
    group_draws,
)
from gradfiltering.reports.sweep_jobs import NOT_KNOWN, SweepJob, option_name
from gradfiltering.reports.verdict_lines import format_command_time
from gradfiltering.statistics.paired_comparison import correct_by_holm
from gradfiltering.statistics.seed_intervals import MIN_SEEDS, SeedEstimate
from gradfiltering.statistics.usage_verdict import (
    EVEN_LOSS,
    EVEN_SCORE,
    MOST_SEEDS,
    DiagnosticCount,
    VerdictEvidence,
    VerdictWord,
    advantage_p_value,
    count_needed_seeds,
    reach_verdict,
)

RANDOM_ARMS = ("random", "random_same_updates")  # the first of them that was trained is the one to compare with
HELDOUT_SHARE = 0.1
# Options that are the command's own, or that say where and how a run is shown.
LEFT_OUT_OPTIONS = {"seed", "until", "run_dir", "plan", "plan.only", "debug", "progress"}
VERDICT_TABLE = "verdicts"
OLD_WARNING = "warning"  # name of a failed diagnostic in runs that noted the warning alone


def judge_run(run_dir: Path) -> dict[str, Any]:
    """Reach the verdict on the subset of a single run, from its folder, as `summary.json` holds it."""
    job = SweepJob(run_dir)
    return describe_verdict(collect_evidence([job]), [job])


def read_verdict(run_files: RunFiles) -> dict[str, Any]:
    """Return the verdict in a run's summary, or reach it for a run that noted none."""
    noted_verdict: dict[str, Any] | None = run_files.summary.get("verdict")
    return judge_run(run_files.path) if noted_verdict is None else noted_verdict


def judge_settings(sweep_jobs: Sequence[SweepJob], varying_options: set[str]) -> dict[str, dict[str, Any]]:
    """Reach the verdict on each setting of a sweep over its seeds.

    An advantage counts where Holm's correction leaves it over all settings that were tested.

    Args:
        sweep_jobs: of the sweep.
        varying_options: that differ between jobs and are no axis.

    Returns:
        Setting -> its verdict, in the form of `summary.json`.
    """
    settings = {
        setting: [jobs_by_seed[seed] for seed in sorted(jobs_by_seed)]
        for setting, jobs_by_seed in group_by_setting(sweep_jobs, varying_options).items()
    }
    evidence = {setting: collect_evidence(jobs) for setting, jobs in settings.items()}
    tested = [setting for setting in settings if evidence[setting].is_tested]
    p_values = [advantage_p_value(evidence[name].loss_difference, evidence[name].winning_score) for name in tested]
    for setting, corrected in zip(tested, correct_by_holm(p_values), strict=True):
        is_left = len(tested) == 1 or corrected < 1 - CONFIDENCE
        evidence[setting] = replace(evidence[setting], settings=len(tested), is_left_by_holm=is_left)
    return {setting: describe_verdict(evidence[setting], jobs) for setting, jobs in settings.items()}


def collect_evidence(jobs: Sequence[SweepJob]) -> VerdictEvidence:
    """Collect what a verdict rests on, from runs that differ in nothing but their seed."""
    arm = find_random_arm(jobs)
    loss_difference = estimate_loss_difference(jobs, arm, "heldout_loss")
    token_loss_difference = estimate_loss_difference(jobs, arm, "heldout_token_loss")
    if loss_difference and token_loss_difference and loss_difference.seeds != token_loss_difference.seeds:
        token_loss_difference = None  # some of the runs are of versions that did not measure it
    failed_counts = Counter(failure for job in jobs for failure in _read_failures(job.diagnostics))
    return VerdictEvidence(
        seeds=len(jobs),
        loss_difference=loss_difference,
        token_loss_difference=token_loss_difference,
        winning_score=estimate_winning_score(jobs, arm),
        failed=[DiagnosticCount(name, forbids_use, seeds) for (name, forbids_use), seeds in failed_counts.items()],
    )


def find_random_arm(jobs: Sequence[SweepJob]) -> list[str]:
    """Return the names of the random baseline's draws; empty where no random rows were trained on."""
    families = group_draws(jobs)
    return next((families[family] for family in RANDOM_ARMS if family in families), [])


def describe_verdict(evidence: VerdictEvidence, jobs: Sequence[SweepJob]) -> dict[str, Any]:
    """Put a verdict into the form of `summary.json`, with its reasons and the command that would settle it."""
    word = reach_verdict(evidence)
    reasons = {
        "use it": _reasons_for_use,
        "do not use it": _reasons_against_use,
        "not tested": _list_gaps,
        "no difference shown": _reasons_for_doubt,
    }[word](evidence, jobs)
    seeds = _seeds_to_run(word, evidence, jobs)
    is_timed = any(stage["name"] == "judge" for job in jobs for stage in job.stages)
    return {
        "verdict": word,
        "reasons": reasons,
        "seeds": evidence.seeds,
        "loss_difference": _to_json(evidence.loss_difference),
        "token_loss_difference": _to_json(evidence.token_loss_difference),
        "loss_is_contradicted": evidence.is_loss_contradicted,
        "winning_score": _to_json(evidence.winning_score),
        "failed": [asdict(count) for count in evidence.failed],
        "settings": evidence.settings,
        "command": build_command(jobs[0], seeds) if seeds else None,
        "command_seconds": _estimate_seconds(jobs, seeds) if seeds else None,
        "command_seconds_are_all": is_timed,
    }


def build_command(job: SweepJob, seeds: Sequence[int]) -> str:
    """Build the command that runs a job to its end with several seeds, beside random rows and with rows held out."""
    changed_options = {}
    baselines = job.options("judge").get("against") or []
    if not find_random_arm([job]) and not any(baseline in RANDOM_ARMS for baseline in baselines):
        changed_options["judge.against"] = "[full,random]"
    if not _holds_rows_out(job):
        changed_options["data.heldout.share"] = str(HELDOUT_SHARE)
    kept_overrides = [
        override
        for override in job.overrides
        if option_name(override) not in LEFT_OUT_OPTIONS | changed_options.keys()
        and not option_name(override).startswith("hydra.")
    ]
    program = ["python", "train.py"] if job.environment.get("git_commit") else ["gradfiltering", "run"]
    new_overrides = [f"{name}={value}" for name, value in changed_options.items()]
    seed_list = ",".join(map(str, seeds))
    return shlex.join([*program, "-m", *kept_overrides, *new_overrides, f"seed={seed_list}", "until=report"])


def _holds_rows_out(job: SweepJob) -> bool:
    """Return True where a job held rows out, or where its data have no option for that."""
    heldout = job.options("data").get("heldout")
    if not isinstance(heldout, Mapping):
        return True
    if "heldout_rows" in job.summary:  # not so in folders of earlier versions
        return bool(job.summary["heldout_rows"])
    return bool(heldout.get("path") or heldout.get("share")) or job.options("data").get("limit") is not None


def build_verdict_table(verdicts: Mapping[str, Mapping[str, Any]]) -> PaperTable:
    """Build the table of a sweep's settings with the verdict on each.

    Args:
        verdicts: setting -> verdict, in the form of `summary.json`.
    """
    lines = [
        {
            "setting": setting,
            "verdict": verdict["verdict"],
            "seeds": str(verdict["seeds"]),
            "why": "; ".join(verdict["reasons"]),
            "time to settle it": format_command_time(verdict) or NOT_KNOWN,
        }
        for setting, verdict in verdicts.items()
    ]
    note = (
        f"An advantage takes {MIN_SEEDS} seeds, both measures, no failed diagnostic, and Holm's correction over the "
        "settings that were tested."
    )
    table = pd.DataFrame(lines, columns=["setting", "verdict", "seeds", "why", "time to settle it"])
    return PaperTable(VERDICT_TABLE, "Every setting against as many random rows.", table, label_count=5, note=note)


def _seeds_to_run(word: VerdictWord, evidence: VerdictEvidence, jobs: Sequence[SweepJob]) -> list[int]:
    """Return the seeds that would settle a verdict; none where it stands, or where more seeds would change nothing."""
    if word == "not tested" and "selection" in jobs[0].summary and all(job.has_usable_verdicts for job in jobs):
        seed_count = max(MIN_SEEDS, len(jobs))
    elif word == "no difference shown" and not evidence.is_better and not evidence.is_loss_contradicted:
        seed_count = max(len(jobs) + 1, count_needed_seeds(evidence, CONFIDENCE) or MOST_SEEDS)
    else:
        return []
    seeds = [job.seed for job in jobs]
    return [*seeds, *range(max(seeds) + 1, max(seeds) + 1 + seed_count - len(seeds))]


def _estimate_seconds(jobs: Sequence[SweepJob], seeds: Sequence[int]) -> float:
    """Estimate the time of the seeds that were not run yet, from the slowest job and what the cache saved it."""
    seconds_of_jobs = [job.stage_seconds + job.saved_seconds for job in jobs]
    return round(max(seconds_of_jobs) * (len(seeds) - len(jobs)), 1)


def _read_failures(diagnostics: Mapping[str, Any]) -> set[tuple[str, bool]]:
    """Read the names of a run's failed diagnostics, and whether each forbids the use of its subset."""
    if "failed" in diagnostics:
        return {(failure["name"], failure["forbids_use"]) for failure in diagnostics["failed"]}
    failures = {(OLD_WARNING, False)} if diagnostics.get("warnings") else set()
    return failures if proxy_knows_rows(diagnostics) else failures | {("proxy_knowledge", True)}


def _reasons_for_use(evidence: VerdictEvidence, jobs: Sequence[SweepJob]) -> list[str]:
    beside = f", and after Holm's correction over {evidence.settings} settings" if evidence.settings > 1 else ""
    return [*_describe_measures(evidence), f"better than random rows in both over {evidence.seeds} seeds{beside}"]


def _reasons_against_use(evidence: VerdictEvidence, jobs: Sequence[SweepJob]) -> list[str]:
    reasons = [
        f"{FORBIDDING_DIAGNOSTICS.get(count.name, count.name)} ({count.name} failed"
        + (f" in {count.seeds} of {evidence.seeds} seeds)" if evidence.seeds > 1 else ")")
        for count in evidence.forbidding
    ]
    if evidence.is_worse:
        reasons += [*_describe_measures(evidence), "worse than random rows"]
    return reasons


def _list_gaps(evidence: VerdictEvidence, jobs: Sequence[SweepJob]) -> list[str]:
    """List what is missing for a test."""
    if not any("selection" in job.summary for job in jobs):
        return ["no rows were selected, as the run ended before"]
    if not any("target" in job.summary for job in jobs):
        return ["no model was trained on the selected rows, as the run ended before"]
    if not find_random_arm(jobs):
        return ["no model was trained on random rows to compare with"]
    gaps = []
    if evidence.loss_difference is None:
        gaps.append("no held-out loss was measured, as no row is held out")
    if evidence.winning_score is None and not all(job.has_usable_verdicts for job in jobs):
        gaps.append("the judge's verdicts are unusable; take another judge")
    elif evidence.winning_score is None:
        gaps.append("no answers were judged against those of random rows")
    measured_seeds = min(
        [estimate.seeds for estimate in (evidence.loss_difference, evidence.winning_score) if estimate is not None],
        default=evidence.seeds,
    )
    if measured_seeds < MIN_SEEDS:
        count_words = "one seed" if measured_seeds == 1 else f"{measured_seeds} seeds"
        gaps.append(f"{count_words} alone; it takes {MIN_SEEDS} to tell a difference from chance")
    return gaps


def _reasons_for_doubt(evidence: VerdictEvidence, jobs: Sequence[SweepJob]) -> list[str]:
    reasons = _describe_measures(evidence)
    if evidence.is_loss_contradicted:
        reasons.append(f"the loss is {_describe_contradiction(evidence)}, so it does not count")
    elif not evidence.is_better and count_needed_seeds(evidence, CONFIDENCE) is None:
        reasons.append(f"up to {MOST_SEEDS} seeds are not expected to show differences such as these")
    if evidence.is_better:
        reasons = [f"{', '.join(reasons)}, which does not count"]
        if not evidence.is_left_by_holm:
            reasons.append(f"Holm's correction over {evidence.settings} settings does not leave it")
        if evidence.failed:
            names = ", ".join(f"{count.name} ({count.seeds} of {evidence.seeds} seeds)" for count in evidence.failed)
            reasons.append(f"diagnostics failed: {names}")
    return reasons


def _describe_contradiction(evidence: VerdictEvidence) -> str:
    """Say which answers have the better loss, where the means over rows and over tokens contradict each other."""
    assert evidence.loss_difference is not None
    better, worse = ("short", "long") if evidence.loss_difference.value < EVEN_LOSS else ("long", "short")
    return f"better on {better} answers and worse on {worse} ones"


def _describe_measures(evidence: VerdictEvidence) -> list[str]:
    """Write both measures with their intervals."""
    return [
        *_describe_measure("held-out loss minus that of random rows", evidence.loss_difference, EVEN_LOSS, "+"),
        *_describe_measure("the same by tokens", evidence.token_loss_difference, EVEN_LOSS, "+"),
        *_describe_measure("PWS against random rows", evidence.winning_score, EVEN_SCORE, ""),
    ]


def _describe_measure(name: str, estimate: SeedEstimate | None, even_value: float, sign: str) -> list[str]:
    if estimate is None:
        return []
    if estimate.low is None or estimate.high is None:
        return [f"{name} {estimate.value:{sign}.3f} (no interval)"]
    return [f"{name} {estimate.value:{sign}.3f} [{estimate.low:{sign}.3f}, {estimate.high:{sign}.3f}]"]


def _to_json(estimate: SeedEstimate | None) -> dict[str, Any] | None:
    if estimate is None:
        return None
    return {name: getattr(estimate, name) for name in ("value", "low", "high", "seeds")}
