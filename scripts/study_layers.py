"""Measure which share of the proxy's layers needs adapters: rankings by the last layers against those by all layers.

    python scripts/study_layers.py --data alpaca_data.json --rows 500 --folder logs/study_layers --json study.json

Trains an ensemble for each seed and choice of layers, and compares in each seed the early and late norms G_s and G_t,
the relative drop, the variance V_t and G-SNR of all rows with those of all layers: Spearman's correlation, and the
share of the top 10 % that both have. Beside them stands how well two ensembles with adapters in all layers, of
different seeds, agree with each other: the noise that any choice of layers may be held against.

Everything trained lies in the cache below `--folder`, each configuration's run folder beside it: an interrupted study
goes on where it was, and further seeds, layers or rows reuse what they can. Seconds are those of training and
measuring as they were taken, the frozen layers' states included where they were made; they are noisy where the machine
is shared. Operations are those of the same by the run's plan, were nothing in the cache.
`--json` has all numbers, and `--table` a Markdown table of means over seeds.
"""

import argparse
import hashlib
import itertools
import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from gradfiltering.requests import EpochLog
from gradfiltering.runs.gradient_log import GradientLogReader
from gradfiltering.scorers.gradient_statistics import gradient_statistics
from gradfiltering.scorers.gsnr import GSNR
from gradfiltering.scorers.normalized_drop import NormalizedDrop
from gradfiltering.statistics.rank_correlation import spearman_correlation
from gradfiltering.statistics.rounding import share_of_count
from gradfiltering.statistics.stability import select_top

ROOT = Path(__file__).parents[1]
ALL_LAYERS, TOP_SHARE = "all", 0.1
TOLERANCE = 0.02  # of the gate: fewer layers may agree so much less with all than two seeds with each other
QUANTITIES = {"G_s": "early norm", "G_t": "late norm", "drop": "relative drop", "V_t": "variance", "gsnr": "G-SNR"}


def main(command_line: Sequence[str] | None = None) -> None:
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
    arguments = parser.parse_args(command_line)
    choices = [ALL_LAYERS, *arguments.layers]
    runs = {
        (seed, choice): measure(arguments, seed, choice) for seed, choice in itertools.product(arguments.seeds, choices)
    }
    results = {
        "costs": [{"seed": seed, "layers": choice, **read_costs(run)} for (seed, choice), run in runs.items()],
        **compare(runs, arguments),
    }
    write_results(arguments, results)
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
    early, late = arguments.epochs
    overrides = [
        f"proxy={arguments.proxy}", f"ensemble.m={arguments.members}", f"epochs.early={early}", f"epochs.late={late}",
        f"ensemble.lora.layers={choice}",
        *([f"ensemble.lr={arguments.lr}"] if arguments.lr else []),
        *([f"ensemble.batch_size={arguments.batch_size}"] if arguments.batch_size else []),
        *arguments.overrides,
    ]  # fmt: skip
    return score_rows(arguments, name, arguments.rows, seed, overrides)


def score_rows(arguments: argparse.Namespace, name: str, row_count: int, seed: int, overrides: Sequence[str]) -> Path:
    """Run a study's configuration up to the scores in a process of its own, unless its scores are there.

    Args:
        arguments: of the study: `data`, and `folder` for the cache and the run folders.
        name: of the run folder; a digest of the options is added, so that other data or another model is another run.
        row_count: first rows of the file.
        seed: of the run.
        overrides: further options; of two that set the same, these count.

    Returns:
        The run folder, beside which the screen is kept as a file.
    """
    folder = arguments.folder.absolute()
    options = list_options(arguments, row_count, seed, overrides)
    digest = hashlib.sha256(repr(options).encode() + Path(arguments.data).read_bytes())
    run_folder: Path = folder / "runs" / f"{name}_{digest.hexdigest()[:8]}"
    if (run_folder / "scores.parquet").is_file():
        return run_folder
    command = [sys.executable, str(ROOT / "train.py"), *options]
    print(name, flush=True)
    run_folder.parent.mkdir(parents=True, exist_ok=True)
    with run_folder.with_suffix(".txt").open("a") as screen:
        subprocess.run(
            [*command, f"cache.path={folder / 'cache'}", f"run_dir={run_folder}"],
            check=True, stdout=screen, stderr=subprocess.STDOUT, cwd=ROOT,
        )  # fmt: skip
    return run_folder


def list_options(arguments: argparse.Namespace, row_count: int, seed: int, overrides: Sequence[str]) -> list[str]:
    """List the options of a run up to the scores, without cache and run folder; arguments as of `score_rows`."""
    return [
        "data=file", f"data.path={Path(arguments.data).absolute()}", f"data.limit={row_count}", "data.heldout.rows=0",
        "heldout_member.train=false", "scorer=gsnr", "until=score", "logger=none", "report.page=false", f"seed={seed}",
        *overrides,
    ]  # fmt: skip


def write_results(arguments: argparse.Namespace, results: dict[str, Any]) -> None:
    """Write a study's numbers into its JSON file, with the machine and the arguments."""
    plain_arguments = {
        name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()
    }
    content = {"machine": f"{processor_name()}, {os.cpu_count()} cores", "arguments": plain_arguments, **results}
    arguments.json.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def read_costs(run_folder: Path) -> dict[str, Any]:
    """Read the seconds that training and measuring took, and their operations as the run's plan counted them."""
    summary = json.loads((run_folder / "summary.json").read_text("utf-8"))
    ensemble = summary["proxy"]
    planned_work = [piece for stage in summary["plan"]["stages"] if stage["name"] == "proxy" for piece in stage["work"]]
    return {
        "seconds": ensemble["made_seconds"] + ensemble["reused_seconds"],
        "operations": sum(piece["all_operations"] for piece in planned_work),
        "heldout_losses": summary["diagnostics"].get("heldout_loss"),
    }


def compare(runs: dict[tuple[int, str], Path], arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare rankings within a seed across layers, and across seeds within a choice of layers."""
    quantities = {key: compute_quantities(run) for key, run in runs.items()}
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


def compute_quantities(run_folder: Path) -> pd.DataFrame:
    """Tabulate the quantities of a run by its gradient log.

    The snapshots are the first and the last that were logged: of many rows a proxy may count them in updates.
    """
    reader = GradientLogReader(run_folder / "gradient_log")
    return tabulate_quantities(reader.epoch(reader.epochs[0]), reader.epoch(reader.epochs[-1]))


def tabulate_quantities(early_log: EpochLog, late_log: EpochLog) -> pd.DataFrame:
    """Compute each quantity, a column of `QUANTITIES`, by example id."""
    early_norms, late_norms = (log.grad_norm.astype(np.float64) for log in (early_log, late_log))
    norm_statistics = gradient_statistics(early_norms, late_norms, ddof=0)
    columns = {
        "G_s": norm_statistics.early_norm,
        "G_t": norm_statistics.late_norm,
        "drop": NormalizedDrop().score_norms(early_norms, late_norms),
        "V_t": norm_statistics.late_variance,
        "gsnr": GSNR().score_norms(early_norms, late_norms),
    }
    return pd.DataFrame(columns, index=late_log.example_ids)


def compare_quantities(first: pd.DataFrame, second: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Compute rank correlation and overlap of the highest tenth for each quantity, over the rows that both have.

    A correlation is NaN where a quantity does not vary.
    """
    shared_ids = first.index.intersection(second.index)
    top_rows = max(share_of_count(TOP_SHARE, len(shared_ids)), 1)
    comparison = {}
    for name in QUANTITIES:
        first_values, second_values = (table.loc[shared_ids, name].to_numpy() for table in (first, second))
        correlation = spearman_correlation(first_values, second_values)
        shared_top = select_top(first_values, top_rows) & select_top(second_values, top_rows)
        comparison[name] = {
            "spearman": math.nan if correlation is None else correlation,
            "overlap": int(shared_top.sum()) / top_rows,
        }
    return comparison


def write_table(results: dict[str, Any], choices: list[str]) -> str:
    """Write a Markdown table of means over seeds, and which choices of layers pass the gate on G-SNR."""
    header = ["layers", *(f"{words} ρ / top" for words in QUANTITIES.values()), "seconds", "operations"]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    noise = [entry for entry in results["between_seeds"] if entry["layers"] == ALL_LAYERS]
    if noise:
        lines.append(f"| all, of two seeds | {' | '.join(format_means(noise))} | | |")
    agreements = []
    for choice in choices:
        costs = [entry for entry in results["costs"] if entry["layers"] == choice]
        entries = [entry for entry in results["with_all_layers"] if entry["layers"] == choice]
        seconds, operations = (fmean(entry[name] for entry in costs) for name in ("seconds", "operations"))
        cells = format_means(entries) if entries else ["1 / 1"] * len(QUANTITIES)
        name = describe_choice(choice)
        lines.append(f"| {name} | {' | '.join(cells)} | {seconds:.0f} | {operations:.2g} |")
        if entries and noise:
            agreements.append(f"{name}: agrees {'as well' if agrees_as_well(entries, noise) else 'less'}")
    agreement_line = f"\nG-SNR against two seeds with each other, less {TOLERANCE}: {'; '.join(agreements)}.\n"
    return "\n".join(lines) + "\n" + (agreement_line if agreements else "")


def agrees_as_well(entries: list[dict[str, Any]], noise: list[dict[str, Any]]) -> bool:
    """Check that G-SNR agrees as well as between two seeds, less the tolerance, by both measures."""
    return all(
        mean_of(entries, "gsnr", measure_name) >= mean_of(noise, "gsnr", measure_name) - TOLERANCE
        for measure_name in ("spearman", "overlap")
    )


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
