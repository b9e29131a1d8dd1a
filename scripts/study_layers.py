"""Measure which share of the proxy's layers needs adapters: rankings by the last layers against those by all layers.

    python scripts/study_layers.py --data alpaca_data.json --rows 500 --folder logs/study_layers --json study.json

Trains an ensemble for each seed and choice of layers, and compares in each seed the early and late norms G_s and G_t,
the relative drop, the variance V_t and G-SNR of all rows with those of all layers: Spearman's correlation, and the
share of the top 10 % that both have. Beside them stands how well two ensembles with adapters in all layers, of
different seeds, agree with each other: the noise that any choice of layers may be held against.

Everything trained lies in the cache below `--folder`, each configuration's run folder beside it: an interrupted study
goes on where it was, and further seeds, layers or rows reuse what they can. Seconds are those of training and
measuring as they were taken, the frozen layers' states included where they were made; they are noisy where the machine
is shared.
`--json` has all numbers, and `--table` a Markdown table of means over seeds.
"""

import argparse
import itertools
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from gradfiltering.runs.gradient_log import GradientLogReader
from gradfiltering.statistics.rank_correlation import spearman_correlation
from gradfiltering.statistics.rounding import share_of_count
from gradfiltering.statistics.stability import select_top

ROOT = Path(__file__).parents[1]
ALL_LAYERS, TOP_SHARE, EPSILON = "all", 0.1, 1e-8
TOLERANCE = 0.02  # of the gate: fewer layers may agree so much less with all than two seeds with each other
QUANTITIES = {"G_s": "early norm", "G_t": "late norm", "drop": "relative drop", "V_t": "variance", "gsnr": "G-SNR"}


def main() -> None:
    """Train what is missing, compare, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="file of rows in any supported form")
    parser.add_argument("--folder", type=Path, required=True, help="for the cache and the run folders")
    parser.add_argument("--json", type=Path, required=True, help="all numbers")
    parser.add_argument("--table", type=Path, help="the Markdown table; it is printed in any case")
    parser.add_argument("--proxy", default="smollm2", help="an option of the group `proxy`")
    parser.add_argument("--rows", type=int, default=500, help="the first so many")
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--epochs", type=int, nargs=2, default=[1, 2], metavar=("EARLY", "LATE"))
    parser.add_argument("--lr", type=float, help="learning rate; without it, the proxy's own")
    parser.add_argument("--batch-size", type=int, help="rows of one update; without it, the proxy's own")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--layers", nargs="+", default=["1", "2", "4", "8", "15"], help="beside all layers")
    parser.add_argument(
        "overrides", nargs="*", help="further options of the run, before the others here, such as precision=fp32"
    )
    arguments = parser.parse_args()
    choices = [ALL_LAYERS, *arguments.layers]
    runs = {
        (seed, choice): measure(arguments, seed, choice) for seed, choice in itertools.product(arguments.seeds, choices)
    }
    results = {
        "machine": f"{processor_name()}, {os.cpu_count()} cores",
        "arguments": {
            name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()
        },
        "costs": [{"seed": seed, "layers": choice, **read_costs(run)} for (seed, choice), run in runs.items()],
        **compare(runs, arguments),
    }
    arguments.json.write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    table = write_table(results, choices)
    print(table)
    if arguments.table:
        arguments.table.write_text(table, "utf-8")


def measure(arguments: argparse.Namespace, seed: int, choice: str) -> Path:
    """Measure the gradient log of one configuration, unless it is there.

    Returns:
        The run folder.
    """
    settings = {
        "rows": arguments.rows, "m": arguments.members, "epochs": "-".join(map(str, arguments.epochs)),
        "lr": arguments.lr, "batch": arguments.batch_size, "layers": choice, "seed": seed,
    }  # fmt: skip
    described = "_".join(f"{name}-{value}" for name, value in settings.items() if value is not None)
    name = re.sub(r"[^\w.-]+", "-", described)
    run_folder = arguments.folder.absolute() / "runs" / name
    if (run_folder / "scores.parquet").is_file():
        return run_folder
    early, late = arguments.epochs
    command = [
        sys.executable, str(ROOT / "train.py"), "data=file", f"data.path={arguments.data}",
        f"data.limit={arguments.rows}", "data.heldout.rows=0", "heldout_member.train=false",
        f"proxy={arguments.proxy}", "scorer=gsnr", "until=score", "logger=none", "report.page=false",
        f"ensemble.m={arguments.members}", f"epochs.early={early}", f"epochs.late={late}", f"seed={seed}",
        f"ensemble.lora.layers={choice}", f"cache.path={arguments.folder.absolute() / 'cache'}",
        f"run_dir={run_folder}",
        *([f"ensemble.lr={arguments.lr}"] if arguments.lr else []),
        *([f"ensemble.batch_size={arguments.batch_size}"] if arguments.batch_size else []),
        *arguments.overrides,
    ]  # fmt: skip
    print(f"seed {seed}, layers {choice}", flush=True)
    run_folder.parent.mkdir(parents=True, exist_ok=True)
    with (run_folder.parent / f"{name}.txt").open("a") as screen:
        subprocess.run(command, check=True, stdout=screen, stderr=subprocess.STDOUT, cwd=ROOT)
    return run_folder


def read_costs(run_folder: Path) -> dict[str, Any]:
    """Read seconds and operations of training and measuring; operations are None for a run that was interrupted."""
    summary = json.loads((run_folder / "summary.json").read_text("utf-8"))
    ensemble = summary["proxy"]
    return {
        "seconds": ensemble["made_seconds"] + ensemble["reused_seconds"],
        "operations": summary["cost"]["proxy"]["flops"] if not ensemble["reused_seconds"] else None,
        "heldout_losses": summary["diagnostics"].get("heldout_loss"),
    }


def compare(runs: dict[tuple[int, str], Path], arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare rankings within a seed across layers, and across seeds within a choice of layers."""
    quantities = {key: compute_quantities(run, *arguments.epochs) for key, run in runs.items()}
    with_all_layers = [
        {"seed": seed, "layers": choice, **compare_quantities(values, quantities[seed, ALL_LAYERS])}
        for (seed, choice), values in quantities.items()
        if choice != ALL_LAYERS
    ]
    between_seeds = [
        {
            "seeds": [first, second],
            "layers": choice,
            **compare_quantities(quantities[first, choice], quantities[second, choice]),
        }
        for choice in [ALL_LAYERS, *arguments.layers]
        for first, second in itertools.combinations(arguments.seeds, 2)
    ]
    return {"with_all_layers": with_all_layers, "between_seeds": between_seeds}


def compute_quantities(run_folder: Path, early: int, late: int) -> dict[str, np.ndarray]:
    """Compute [N] values of each quantity; METHODS, GradFiltering 3 and 4."""
    reader = GradientLogReader(run_folder / "gradient_log")
    early_norms, late_norms = (reader.epoch(epoch).grad_norm.astype(np.float64) for epoch in (early, late))
    mean_early, mean_late, variance = early_norms.mean(0), late_norms.mean(0), late_norms.var(0)
    relative_drop = (mean_early - mean_late) / (mean_early + EPSILON)
    return {
        "G_s": mean_early, "G_t": mean_late, "drop": relative_drop, "V_t": variance,
        "gsnr": relative_drop / (variance + EPSILON),
    }  # fmt: skip


def compare_quantities(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Compute rank correlation and overlap of the highest tenth for each quantity."""
    top_rows = share_of_count(TOP_SHARE, len(first["gsnr"]))
    return {
        name: {
            "spearman": float(spearman_correlation(first[name], second[name]) or 0.0),
            "overlap": int((select_top(first[name], top_rows) & select_top(second[name], top_rows)).sum()) / top_rows,
        }
        for name in QUANTITIES
    }


def write_table(results: dict[str, Any], choices: list[str]) -> str:
    """Write a Markdown table of means over seeds, and the verdict of the gate on G-SNR."""
    header = ["layers", *(f"{words} ρ / top" for words in QUANTITIES.values()), "seconds", "operations"]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    noise = [entry for entry in results["between_seeds"] if entry["layers"] == ALL_LAYERS]
    if noise:
        lines.append(f"| all, of two seeds | {' | '.join(format_means(noise))} | | |")
    verdicts = []
    for choice in choices:
        costs = [entry for entry in results["costs"] if entry["layers"] == choice]
        entries = [entry for entry in results["with_all_layers"] if entry["layers"] == choice]
        operations = [entry["operations"] for entry in costs if entry["operations"]]
        cost_cells = f"{fmean(entry['seconds'] for entry in costs):.0f} | " + (
            f"{fmean(operations):.2g}" if operations else "–"
        )
        cells = format_means(entries) if entries else ["1 / 1"] * len(QUANTITIES)
        name = describe_choice(choice)
        lines.append(f"| {name} | {' | '.join(cells)} | {cost_cells} |")
        if entries and noise:
            agrees = all(
                mean_of(entries, "gsnr", measure_name) >= mean_of(noise, "gsnr", measure_name) - TOLERANCE
                for measure_name in ("spearman", "overlap")
            )
            verdicts.append(f"{name}: {'agrees as well' if agrees else 'agrees less'}")
    verdict_line = (
        f"\nG-SNR against two seeds with each other, less {TOLERANCE}: {'; '.join(verdicts)}.\n" if verdicts else ""
    )
    return "\n".join(lines) + "\n" + verdict_line


def describe_choice(choice: str) -> str:
    """Name a choice of layers in words: `last 8` for 8 and last_8."""
    return f"last {choice}" if choice.isdecimal() else choice.replace("_", " ")


def format_means(entries: list[dict[str, Any]]) -> list[str]:
    """Format the mean rank correlation and overlap of each quantity."""
    return [
        f"{mean_of(entries, name, 'spearman'):.3f} / {mean_of(entries, name, 'overlap'):.2f}" for name in QUANTITIES
    ]


def mean_of(entries: list[dict[str, Any]], quantity: str, measure_name: str) -> float:
    """Average over seeds, or pairs of seeds."""
    return fmean(entry[quantity][measure_name] for entry in entries)


def processor_name() -> str:
    """Name the processor as the system does."""
    cpu_facts = Path("/proc/cpuinfo")
    if cpu_facts.is_file():
        for line in cpu_facts.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
