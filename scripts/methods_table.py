"""One row a method: the jobs of a sweep over methods and seeds, averaged over the seeds, as Markdown.

python scripts/methods_table.py logs/sweeps/2026-11-22/12-00-00-000000

PWS is that of all prompts of all seeds, with a bootstrap interval over prompts within seeds; a star marks an interval
that leaves out 1. Seconds are what choosing took or would have taken without the store (ensemble, gradients, bare
losses, score and choice; in a LEAD run the training that chooses), and are as noisy as the machine.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from gradfiltering.seeding import numpy_rng

CHOOSING = ("base_model_passes", "score", "select")
RESAMPLES = 5000
KINDS = ("clean", "wrong_answer", "mismatched_response", "gibberish", "truncated", "duplicate", "ambiguous")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the sweep")
    parser.add_argument("--over", default="method", help="the option that names a row")
    options = parser.parse_args()
    jobs = defaultdict(list)
    for file in options.folder.glob("*/summary.json"):
        about = json.loads((file.parent / "environment.json").read_text("utf-8"))
        asked = dict(one.split("=", 1) for one in about["overrides"])
        found = json.loads(file.read_text("utf-8"))
        if "pws" in found:
            jobs[asked.get(options.over, "?")].append(found)
    table = sorted(((name, row(found)) for name, found in jobs.items()), key=lambda one: -one[1]["PWS, random"][0])
    names = list(table[0][1])
    print("| method | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 1) + "|")
    for name, cells in table:
        print(f"| `{name}` | " + " | ".join(shown(cells[one]) for one in names) + " |")


def row(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The cells of one method."""
    cells: dict[str, Any] = {"seeds": str(len(found))}
    for against in ("random", "full"):
        cells[f"PWS, {against}"] = pooled([one["pws"][against]["all"] for one in found])
    cells["held-out loss"] = fmean(one["target"]["candidate"]["heldout_loss"] for one in found)
    truth = [one["diagnostics"].get("truth") or {} for one in found]
    aucs = [one["auc"]["scorer"]["value"] for one in truth if one.get("auc", {}).get("scorer")]
    cells["AUC"] = fmean(aucs) if aucs else None
    for kind in KINDS:
        shares = [one["share"][kind]["selected"] for one in truth if kind in one.get("share", {})]
        cells[f"{kind.split('_')[0]} %"] = f"{100 * fmean(shares):.1f}" if shares else None
    cells["seconds"] = f"{fmean(seconds(one) for one in found):.0f}"
    cells["peak GiB"] = f"{max(cost['peak_bytes'] for one in found for cost in one['cost'].values()) / 2**30:.2f}"
    return cells


def pooled(sets: list[dict[str, Any]]) -> tuple[float, float, float]:
    """PWS over seeds with a 95 % interval: verdicts are drawn again within each seed."""
    rng, draws, values = numpy_rng(0, "methods table"), [], []
    for one in sets:
        outcome = np.repeat([1.0, 0.0, -1.0], [one["wins"], one["ties"], one["losses"]])
        values.append(1 + outcome.mean())
        draws.append(1 + outcome[rng.integers(0, len(outcome), (RESAMPLES, len(outcome)))].mean(1))
    low, high = np.quantile(np.mean(draws, axis=0), [0.025, 0.975])
    return float(np.mean(values)), float(low), float(high)


def seconds(one: dict[str, Any]) -> float:
    """What choosing took, with what the store saved of it."""
    spent = sum(stage["seconds"] for stage in one["stages"] if stage["name"] in CHOOSING)
    for part in ("proxy", "influence"):
        spent += sum(one.get(part, {}).get(name, 0.0) for name in ("seconds", "reused_seconds"))
    return spent + (one["target"]["candidate"]["seconds"] if one["selection"]["selector"] == "lead" else 0.0)


def shown(cell: Any) -> str:
    if isinstance(cell, tuple):
        value, low, high = cell
        return f"{value:.3f} [{low:.3f}, {high:.3f}]" + ("\\*" if low > 1 or high < 1 else "")
    return "–" if cell is None else cell if isinstance(cell, str) else f"{cell:.3f}"


if __name__ == "__main__":
    main()
