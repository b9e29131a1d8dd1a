"""Measure from how many rows on the norms of the training steps rank rows as passes over frozen parameters do.

    python scripts/study_online.py --data rows.jsonl --rows 500 2000 8000 --folder logs/study_online --json online.json

Both kinds of norms are read off the same trained members. In each seed the early and late norms, the relative drop,
the variance and G-SNR of all rows are compared: Spearman's correlation, and the share of the top 10 % that both have.
Beside them stands how well two ensembles of different seeds agree with each other by passes: norms of steps could
take their place where G-SNR agrees as well, less 0.02.

With `--compared-rows` the members are trained on all rows, and the passes cover only so many of them, drawn at random
and the same for every seed: a pass over all rows under every member takes as long as an epoch.

Everything trained lies in the cache below `--folder`: an interrupted study goes on where it was.
"""

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from study_layers import (
    QUANTITIES,
    agrees_as_well,
    compare_quantities,
    compute_quantities,
    format_means,
    list_options,
    score_rows,
    tabulate_quantities,
    write_results,
)

from gradfiltering.config.build import build_experiment
from gradfiltering.config.composition import composed
from gradfiltering.ensembles.trained_ensemble import EnsembleCosts
from gradfiltering.evidence.ensemble_passes import EnsemblePasses, attach_ensemble
from gradfiltering.experiment.model_loading import load_language_model
from gradfiltering.experiment.open_run import open_run
from gradfiltering.experiment.stages.data import read_rows_and_prompts
from gradfiltering.experiment.stages.measurement import encode_rows
from gradfiltering.planning.row_fitting import draw_rows
from gradfiltering.runs.gradient_log import read_members
from gradfiltering.runs.progress import run_display

WAYS = ("online", "snapshot")  # members that the first trains serve the second


def main(command_line: Sequence[str] | None = None) -> None:
    """Measure what is missing, compare, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="file of rows in any supported form")
    parser.add_argument("--rows", type=int, nargs="+", required=True, help="sizes: the first so many of the file")
    parser.add_argument("--folder", type=Path, required=True, help="for the cache and the run folders")
    parser.add_argument("--json", type=Path, required=True, help="all numbers")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--compared-rows", type=int, help="rows that the passes cover; without it, all")
    parser.add_argument(
        "overrides", nargs="*", help="further options of the run, before the others here, such as proxy=smollm2"
    )
    arguments = parser.parse_args(command_line)
    sizes = []
    for row_count in arguments.rows:
        quantities = {
            (seed, way): measure(arguments, row_count, seed, way)
            for seed, way in itertools.product(arguments.seeds, WAYS)
        }
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


def measure(arguments: argparse.Namespace, row_count: int, seed: int, way: str) -> pd.DataFrame:
    """Measure the quantities of the rows in one way, unless they are in the cache; a column each, by example id."""
    if way == "snapshot" and arguments.compared_rows is not None:
        return pass_over_drawn_rows(arguments, row_count, seed)
    name = f"rows-{row_count}_seed-{seed}_{way}"
    return compute_quantities(score_rows(arguments, name, row_count, seed, list_overrides(arguments, way)))


def list_overrides(arguments: argparse.Namespace, way: str) -> list[str]:
    """List the options of one way; whole epochs, which alone have norms of steps, whatever the proxy's snapshots."""
    return ["epochs=e1_e2", f"ensemble.collect={way}", *arguments.overrides]


def pass_over_drawn_rows(arguments: argparse.Namespace, row_count: int, seed: int) -> pd.DataFrame:
    """Measure the quantities of rows drawn at random by passes, under members that were trained on all rows."""
    options = list_options(arguments, row_count, seed, list_overrides(arguments, "snapshot"))
    with (
        tempfile.TemporaryDirectory() as run_folder,
        composed([*options, f"cache.path={arguments.folder.absolute() / 'cache'}", f"run_dir={run_folder}"]) as cfg,
        run_display(show_bars=False),
    ):
        experiment = build_experiment(cfg)
        with open_run(experiment) as run:
            dataset, _ = read_rows_and_prompts(experiment, run)
            proxy = load_language_model(
                experiment.proxy.base_model, experiment.cache, experiment.seed, run.build_trainer
            )
            context = encode_rows(experiment, run, dataset, proxy)
            drawn_examples = draw_rows(context.examples, arguments.compared_rows, seed=0)
            moments = [context.snapshots.early, context.snapshots.late]
            with attach_ensemble(context, EnsembleCosts(), None) as trained_ensemble:
                trained_ensemble.train(moments)
                passes = EnsemblePasses(trained_ensemble, drawn_examples, "drawn rows")
                member_ids = trained_ensemble.settings.member_ids
                logs = [read_members(passes.measure_logs(member_ids, moment)) for moment in moments]
    return tabulate_quantities(*logs)


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
