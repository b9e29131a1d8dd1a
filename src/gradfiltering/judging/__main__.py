"""Stored judgements again (`python -m gradfiltering.judging rescore FILE...`, `compare` and `agreement NAME=FILE...`).

Also benchmarks of lm-evaluation-harness on the models of a run (`harness FOLDER --tasks NAME,...`).
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gradfiltering.errors import UserError
from gradfiltering.judging.agreement import agreements, read_labels
from gradfiltering.judging.compare import compare_candidates, read_outcomes
from gradfiltering.judging.rescore import rescore

# A run takes these from conf/shared/judging.yaml and train.yaml; a test keeps the two equal.
RESAMPLES = 10_000
CONFIDENCE = 0.95
SEED = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        found, table = options.run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(found, indent=2, allow_nan=False))
    else:
        Console().print(table)
    return 0


def _rescore(options: argparse.Namespace) -> tuple[Any, Table]:
    entries = rescore(options.files, *_drawing(options))
    return entries, _table(entries, options.confidence)


def _compare(options: argparse.Namespace) -> tuple[Any, Table]:
    files = dict(options.files)
    if len(files) < max(2, len(options.files)):
        raise UserError("give at least two files under different names, NAME=verdicts.jsonl")
    found = compare_candidates(read_outcomes(files, options.against), *_drawing(options))
    table = Table("candidates", "prompts", "PWS difference", f"{options.confidence:.0%} interval", "p", "p (Holm)")
    for one in found:
        interval = f"{one.low:+.3f} – {one.high:+.3f}"
        numbers = (str(one.prompts), f"{one.difference:+.3f}", interval, f"{one.p:.4f}", f"{one.p_holm:.4f}")
        table.add_row(f"{one.one} – {one.other}", *numbers)
    return [asdict(one) for one in found], table


def _agreement(options: argparse.Namespace) -> tuple[Any, Table]:
    found = agreements(read_labels(dict(options.files)), *_drawing(options))
    if not found:
        raise UserError("no two raters rated anything in common")
    table = Table("raters", "rated by all", "equal", f"{options.confidence:.0%} interval", "kappa", "interval")
    for one in found:
        equal = (f"{one.share:.3f}", f"{one.share_low:.3f} – {one.share_high:.3f}")
        known = one.kappa is not None
        kappa = (f"{one.kappa:.3f}", f"{one.kappa_low:.3f} – {one.kappa_high:.3f}") if known else ("–", "–")
        table.add_row(", ".join(one.raters), str(one.items), *equal, *kappa)
    return [asdict(one) for one in found], table


def _harness(options: argparse.Namespace) -> tuple[Any, Table]:
    # Imported here because it takes seconds, and the other commands do without.
    from gradfiltering.judging.harness import Benchmarks, run_harness

    tasks = [name for name in options.tasks.split(",") if name]
    chosen = Benchmarks(tasks, options.include, options.limit, options.shots, options.chat)
    found = run_harness(options.folder, options.model, chosen, options.batch_size, options.device)
    table = Table("task", "metric", "value", "standard error", "documents", "shots")
    for task, entry in found.items():
        for metric, one in entry["metrics"].items():
            error = "–" if one["stderr"] is None else f"{one['stderr']:.4f}"
            table.add_row(task, metric, f"{one['value']:.4f}", error, str(entry["samples"]), str(entry["shots"]))
    return found, table


def _drawing(options: argparse.Namespace) -> tuple[int, float, int]:
    return options.resamples, options.confidence, options.seed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gradfiltering.judging", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "rescore", help="wins, ties, losses and PWS of stored judgements, per file and pooled"
    )
    command.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="verdicts.jsonl of a run, or a published review file (.json)",
    )
    command.set_defaults(run=_rescore)
    _common(command)
    command = commands.add_parser(
        "compare", help="several candidates on the same prompts: paired bootstrap, Holm's correction"
    )
    command.add_argument(
        "files", nargs="+", type=_named_file, metavar="NAME=FILE", help="verdicts.jsonl of a run under a name"
    )
    command.add_argument("--against", default="full", help="the opponent they share (%(default)s)")
    command.set_defaults(run=_compare)
    _common(command)
    command = commands.add_parser("agreement", help="of judges and of people: share, Cohen's and Fleiss' kappa")
    command.add_argument(
        "files", nargs="+", type=_named_file, metavar="NAME=FILE", help="verdicts.jsonl, or ratings.sqlite of people"
    )
    command.set_defaults(run=_agreement)
    _common(command)
    _add_harness(commands.add_parser("harness", help="benchmarks of lm-evaluation-harness on a model of a run"))
    return parser


def _add_harness(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", type=Path, metavar="FOLDER", help="of the run; its summary.json gets the results")
    command.add_argument("--tasks", required=True, metavar="NAME,...", help="of tasks or groups")
    command.add_argument("--model", default="candidate", help="candidate, full or random (%(default)s)")
    command.add_argument("--include", type=Path, metavar="FOLDER", help="with task files of your own")
    command.add_argument("--limit", type=_at_least_one, help="only the first so many documents of each task")
    command.add_argument("--shots", type=int, help="examples in the prompt (default: as each task says)")
    command.add_argument("--chat", action="store_true", help="put prompts into the model's chat template")
    command.add_argument("--batch-size", type=_at_least_one, default=8, help="prompts at once (%(default)s)")
    command.add_argument("--device", default="auto", help="(%(default)s)")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command.set_defaults(run=_harness)


def _common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command.add_argument("--resamples", type=_at_least_one, default=RESAMPLES, help="bootstrap resamples (%(default)s)")
    command.add_argument("--confidence", type=_confidence, default=CONFIDENCE, help="of the interval (%(default)s)")
    command.add_argument("--seed", type=int, default=SEED, help="of the bootstrap (%(default)s)")


def _named_file(text: str) -> tuple[str, Path]:
    name, separator, file = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"{text}: give NAME=FILE")
    return name, Path(file)


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return value


def _confidence(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must lie between 0 and 1, both excluded")
    return value


def _table(entries: Mapping[str, Mapping[str, Any]], confidence: float) -> Table:
    table = Table("judgements", "wins", "ties", "losses", "unparsed", "PWS", f"{confidence:.0%} interval")
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.justify = "right"
    for name, entry in entries.items():
        counts = [str(entry[key]) for key in ("wins", "ties", "losses", "unparsed")]
        known = entry["pws"] is not None
        score = f"{entry['pws']:.3f}" if known else "–"
        interval = f"{entry['low']:.3f} – {entry['high']:.3f}" if known else "–"
        table.add_row(name, *counts, score, interval)
    return table


if __name__ == "__main__":
    sys.exit(main())
