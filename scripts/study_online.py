"""Measure from how many rows on the norms of the training steps rank rows as passes over frozen parameters do.

    python scripts/study_online.py --data rows.jsonl --rows 500 2000 8000 --folder logs/study_online --json online.json

Both kinds of norms are read off the same trained members. In each seed the early and late norms, the relative drop,
the variance and G-SNR of all rows are compared: Spearman's correlation, and the share of the top 10 % that both have.
Beside them stands how well two ensembles of different seeds agree with each other by passes. `ensemble.collect=auto`
takes the norms of the steps from where G-SNR agrees as well, less 0.02.

Everything trained lies in the cache below `--folder`: an interrupted study goes on where it was.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from study_layers import (
    QUANTITIES,
    TOLERANCE,
    compare_quantities,
    compute_quantities,
    format_means,
    mean_of,
    processor_name,
)

ROOT = Path(__file__).parents[1]
WAYS = ("snapshot", "online")
EPOCHS = (1, 2)


def main() -> None:
    """Measure what is missing, compare, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="file of rows in any supported form")
    parser.add_argument("--rows", type=int, nargs="+", required=True, help="sizes: the first so many of the file")
    parser.add_argument("--folder", type=Path, required=True, help="for the cache and the run folders")
    parser.add_argument("--json", type=Path, required=True, help="all numbers")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "overrides", nargs="*", help="further options of the run, before the others here, such as proxy=smollm2"
    )
    arguments = parser.parse_args()
    sizes = []
    for row_count in arguments.rows:
        runs = {
            (seed, way): measure(arguments, row_count, seed, way)
            for seed, way in itertools.product(arguments.seeds, WAYS)
        }
        quantities = {key: compute_quantities(run, *EPOCHS) for key, run in runs.items()}
        within_seeds = [
            compare_quantities(quantities[seed, "online"], quantities[seed, "snapshot"]) for seed in arguments.seeds
        ]
        between_seeds = [
            compare_quantities(quantities[first, "snapshot"], quantities[second, "snapshot"])
            for first, second in itertools.combinations(arguments.seeds, 2)
        ]
        sizes.append({"rows": row_count, "within_seeds": within_seeds, "between_seeds": between_seeds})
        print(write_table(sizes), flush=True)
    results = {
        "machine": f"{processor_name()}, {os.cpu_count()} cores",
        "arguments": {
            name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()
        },
        "sizes": sizes,
    }
    arguments.json.write_text(json.dumps(results, indent=2) + "\n", "utf-8")


def measure(arguments: argparse.Namespace, row_count: int, seed: int, way: str) -> Path:
    """Measure the gradient log in one way, unless it is there, and return the run folder."""
    run_folder = arguments.folder.absolute() / "runs" / f"rows-{row_count}_seed-{seed}_{way}"
    if (run_folder / "scores.parquet").is_file():
        return run_folder
    command = [
        sys.executable, str(ROOT / "train.py"), "data=file", f"data.path={arguments.data}",
        f"data.limit={row_count}", "data.heldout.rows=0", "scorer=gsnr", "until=score", "logger=none",
        "report.page=false", "heldout_member.train=false", f"seed={seed}", f"ensemble.collect={way}",
        f"cache.path={arguments.folder.absolute() / 'cache'}", f"run_dir={run_folder}", *arguments.overrides,
    ]  # fmt: skip
    print(f"{row_count} rows, seed {seed}, {way}", flush=True)
    run_folder.parent.mkdir(parents=True, exist_ok=True)
    with (run_folder.parent / f"{run_folder.name}.txt").open("a") as screen:
        subprocess.run(command, check=True, stdout=screen, stderr=subprocess.STDOUT, cwd=ROOT)
    return run_folder


def write_table(sizes: list[dict[str, Any]]) -> str:
    """Write a Markdown table of means over seeds, with the verdict of the gate on G-SNR."""
    header = ["rows", "compared", *(f"{words} ρ / top" for words in QUANTITIES.values()), "G-SNR agrees"]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for size in sizes:
        within_seeds, between_seeds = size["within_seeds"], size["between_seeds"]
        agrees = bool(between_seeds) and all(
            mean_of(within_seeds, "gsnr", name) >= mean_of(between_seeds, "gsnr", name) - TOLERANCE
            for name in ("spearman", "overlap")
        )
        verdict = ("as well" if agrees else "less") if between_seeds else "–"
        lines.append(f"| {size['rows']:,} | steps with passes | {' | '.join(format_means(within_seeds))} | {verdict} |")
        if between_seeds:
            lines.append(f"| | two seeds | {' | '.join(format_means(between_seeds))} | |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
