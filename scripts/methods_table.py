"""The methods of a sweep in a Markdown table: a row for each method, jobs averaged over the seeds.

python scripts/methods_table.py logs/sweeps/2026-11-22/12-00-00-000000

PWS is that of all prompts of all seeds, with a bootstrap interval over prompts within seeds; a star marks an interval
that leaves out 1. Seconds are those that selecting took or would have taken without the cache (ensemble, gradients,
base-model losses, score and selection; in a LEAD run the training that selects), and are as noisy as the machine.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from gradfiltering.reports.sweep_jobs import read_jobs
from gradfiltering.seeding import numpy_rng

SELECTING_STAGES = ("bare", "score", "select")
RESAMPLES = 5000
KINDS = ("clean", "wrong_answer", "mismatched_response", "gibberish", "truncated", "duplicate", "ambiguous")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the sweep")
    parser.add_argument("--over", default="method", help="the option that names a row")
    arguments = parser.parse_args()
    summaries_by_method = defaultdict(list)
    for job in read_jobs(arguments.folder):
        option_values = dict(override.split("=", 1) for override in job.overrides)
        if "pws" in job.summary:
            summaries_by_method[f"`{option_values.get(arguments.over, '?')}`"].append(job.summary)
    rows = {method: build_row(summaries) for method, summaries in summaries_by_method.items()}
    best_first = sorted(rows, key=lambda method: -rows[method]["PWS, random"][0])
    table = pd.DataFrame({method: rows[method] for method in best_first}).T.map(format_cell)
    print(table.rename_axis("method").to_markdown(disable_numparse=True))


def build_row(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """Build the cells of a method from the summaries of its jobs."""
    cells: dict[str, Any] = {"seeds": str(len(summaries))}
    for baseline in ("random", "full"):
        cells[f"PWS, {baseline}"] = pool_scores([summary["pws"][baseline]["all"] for summary in summaries])
    cells["held-out loss"] = fmean(summary["target"]["candidate"]["heldout_loss"] for summary in summaries)
    truths = [summary["diagnostics"].get("truth") or {} for summary in summaries]
    aucs = [truth["auc"]["scorer"]["value"] for truth in truths if truth.get("auc", {}).get("scorer")]
    cells["AUC"] = fmean(aucs) if aucs else None
    for kind in KINDS:
        shares = [truth["share"][kind]["selected"] for truth in truths if kind in truth.get("share", {})]
        cells[f"{kind.split('_')[0]} %"] = f"{100 * fmean(shares):.1f}" if shares else None
    cells["seconds"] = f"{fmean(count_selecting_seconds(summary) for summary in summaries):.0f}"
    peak_bytes = max(cost["peak_bytes"] for summary in summaries for cost in summary["cost"].values())
    cells["peak GiB"] = f"{peak_bytes / 2**30:.2f}"
    return cells


def pool_scores(scores: list[dict[str, Any]]) -> tuple[float, float, float]:
    """Pool PWS over seeds with a 95 % interval: verdicts are drawn again within each seed."""
    rng, resampled_scores, values = numpy_rng(0, "methods table"), [], []
    for score in scores:
        outcomes = np.repeat([1.0, 0.0, -1.0], [score["wins"], score["ties"], score["losses"]])
        values.append(1 + outcomes.mean())
        drawn_prompts = rng.integers(0, len(outcomes), (RESAMPLES, len(outcomes)))
        resampled_scores.append(1 + outcomes[drawn_prompts].mean(1))
    low, high = np.quantile(np.mean(resampled_scores, axis=0), [0.025, 0.975])
    return float(np.mean(values)), float(low), float(high)


def count_selecting_seconds(summary: dict[str, Any]) -> float:
    """Count the seconds of selecting, those that the cache saved among them."""
    seconds = sum(stage["seconds"] for stage in summary["stages"] if stage["name"] in SELECTING_STAGES)
    for part in ("proxy", "influence"):
        seconds += sum(summary.get(part, {}).get(name, 0.0) for name in ("seconds", "reused_seconds"))
    leads = summary["selection"]["selector"] == "lead"
    return seconds + (summary["target"]["candidate"]["seconds"] if leads else 0.0)


def format_cell(cell: Any) -> str:
    if isinstance(cell, tuple):
        value, low, high = cell
        return f"{value:.3f} [{low:.3f}, {high:.3f}]" + ("\\*" if low > 1 or high < 1 else "")
    return "–" if cell is None else cell if isinstance(cell, str) else f"{cell:.3f}"


if __name__ == "__main__":
    main()
