"""The methods of a sweep in a Markdown table: a row for each method, jobs averaged over the seeds.

python scripts/methods_table.py logs/sweeps/2026-11-22/12-00-00-000000

Held-out loss is the candidate's less that of the baseline, PWS that against it, AUC that of clean over planted rows;
each with a 95 % interval over seeds and prompts (`gradfiltering.statistics.seed_intervals`), of three seeds at least. A
star marks what is left after Holm's correction over all tests of the table. Seconds are those that selecting took or
would have taken without the cache (ensemble, gradients, base-model losses, score and selection; in a LEAD run the
training that selects), and are as noisy as the machine.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import pandas as pd

from gradfiltering.reports.seed_tables import CONFIDENCE, SeedRow, measure_setting
from gradfiltering.reports.sweep_jobs import SweepJob, read_jobs
from gradfiltering.statistics.paired_comparison import correct_by_holm

KINDS = ("clean", "wrong_answer", "mismatched_response", "gibberish", "truncated", "duplicate", "ambiguous")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the sweep")
    parser.add_argument("--over", default="method", help="the option that names a row")
    arguments = parser.parse_args()
    jobs_by_method: defaultdict[str, dict[int, SweepJob]] = defaultdict(dict)
    for job in read_jobs(arguments.folder):
        option_values = dict(override.split("=", 1) for override in job.overrides)
        if "target" in job.summary:
            jobs_by_method[f"`{option_values.get(arguments.over, '?')}`"][job.seed] = job
    table = build_table(jobs_by_method)
    print(table.rename_axis("method").to_markdown(disable_numparse=True))


def build_table(jobs_by_method: dict[str, dict[int, SweepJob]]) -> pd.DataFrame:
    """Build the table, the lowest held-out loss first."""
    measures = {method: list(measure_setting(method, jobs)) for method, jobs in jobs_by_method.items()}
    tested_rows = [row for rows in measures.values() for row in rows if row.estimate.p is not None]
    corrected = correct_by_holm([row.estimate.p for row in tested_rows if row.estimate.p is not None])
    starred = {(row.setting, row.measure) for row, p in zip(tested_rows, corrected, strict=True) if p < 1 - CONFIDENCE}
    rows = {}
    for method, jobs in jobs_by_method.items():
        cells = {"seeds": str(len(jobs))}
        cells |= {row.measure: format_estimate(row, (method, row.measure) in starred) for row in measures[method]}
        rows[method] = cells | describe_jobs(list(jobs.values()))
    losses = {
        method: fmean(job.summary["target"]["candidate"]["heldout_loss"] or 0.0 for job in jobs.values())
        for method, jobs in jobs_by_method.items()
    }
    best_first = sorted(rows, key=lambda method: losses[method])
    return pd.DataFrame({method: rows[method] for method in best_first}).T.fillna("–")


def format_estimate(row: SeedRow, has_star: bool) -> str:
    """Write a value with its interval, where it has one."""
    estimate = row.estimate
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]" + ("\\*" if has_star else "")


def describe_jobs(jobs: list[SweepJob]) -> dict[str, str]:
    """Describe what was selected, and what it cost."""
    cells = {}
    truths = [job.diagnostics.get("truth") or {} for job in jobs]
    for kind in KINDS:
        shares = [truth["share"][kind]["selected"] for truth in truths if kind in truth.get("share", {})]
        if shares:
            cells[f"{kind.split('_')[0]} %"] = f"{100 * fmean(shares):.1f}"
    cells["seconds"] = f"{fmean(job.selecting_seconds for job in jobs):.0f}"
    peak_bytes = max(cost["peak_bytes"] for job in jobs for cost in job.summary["cost"].values())
    cells["peak GiB"] = f"{peak_bytes / 2**30:.2f}"
    return cells


if __name__ == "__main__":
    main()
