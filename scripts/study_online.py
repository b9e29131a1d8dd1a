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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from study_layers import (
    QUANTITIES,
    agrees_as_well,
    compare_quantities,
    compute_quantities,
    format_means,
    score_rows,
    write_results,
)

WAYS = ("snapshot", "online")


def main(command_line: Sequence[str] | None = None) -> None:
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
    arguments = parser.parse_args(command_line)
    sizes = []
    for row_count in arguments.rows:
        runs = {
            (seed, way): measure(arguments, row_count, seed, way)
            for seed, way in itertools.product(arguments.seeds, WAYS)
        }
        quantities = {key: compute_quantities(run) for key, run in runs.items()}
        within_seeds = [
            compare_quantities(quantities[seed, "online"], quantities[seed, "snapshot"]) for seed in arguments.seeds
        ]
        between_seeds = [
            compare_quantities(quantities[first, "snapshot"], quantities[second, "snapshot"])
            for first, second in itertools.combinations(arguments.seeds, 2)
        ]
        sizes.append({"rows": row_count, "within_seeds": within_seeds, "between_seeds": between_seeds})
        print(write_table(sizes), flush=True)
    write_results(arguments, {"sizes": sizes})


def measure(arguments: argparse.Namespace, row_count: int, seed: int, way: str) -> Path:
    """Measure the gradient log in one way, unless it is there, and return the run folder."""
    # Whole epochs, also where the proxy's own snapshots are counted in updates, which steps have no norms for.
    overrides = ["epochs=e1_e2", f"ensemble.collect={way}", *arguments.overrides]
    return score_rows(arguments, f"rows-{row_count}_seed-{seed}_{way}", row_count, seed, overrides)


def write_table(sizes: list[dict[str, Any]]) -> str:
    """Write a Markdown table of means over seeds, and whether the steps pass the gate on G-SNR."""
    header = ["rows", "compared", *(f"{words} ρ / top" for words in QUANTITIES.values()), "G-SNR agrees"]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for size in sizes:
        within_seeds, between_seeds = size["within_seeds"], size["between_seeds"]
        agreement = "–"
        if between_seeds:
            agreement = "as well" if agrees_as_well(within_seeds, between_seeds) else "less"
        means = " | ".join(format_means(within_seeds))
        lines.append(f"| {size['rows']:,} | steps with passes | {means} | {agreement} |")
        if between_seeds:
            lines.append(f"| | two seeds | {' | '.join(format_means(between_seeds))} | |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
