"""Stored judgements again: `python -m gradfiltering.judge rescore FILE...` and `compare`, `agreement NAME=FILE...`."""

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
from gradfiltering.judge.agreement import agreements, read_labels
from gradfiltering.judge.compare import compare_candidates, read_outcomes
from gradfiltering.judge.rescore import rescore

# A run takes these from conf/shared/judging.yaml and train.yaml; a test keeps the two equal.
RESAMPLES = 10_000
CONFIDENCE = 0.95
SEED = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    drawing = (options.resamples, options.confidence, options.seed)
    try:
        found, table = options.run(options, drawing)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(found, indent=2, allow_nan=False))
    else:
        Console().print(table)
    return 0


def _rescore(options: argparse.Namespace, drawing: tuple[int, float, int]) -> tuple[Any, Table]:
    entries = rescore(options.files, *drawing)
    return entries, _table(entries, options.confidence)


def _compare(options: argparse.Namespace, drawing: tuple[int, float, int]) -> tuple[Any, Table]:
    files = dict(options.files)
    if len(files) < max(2, len(options.files)):
        raise UserError("give at least two files under different names, NAME=verdicts.jsonl")
    found = compare_candidates(read_outcomes(files, options.against), *drawing)
    table = Table("candidates", "prompts", "PWS difference", f"{options.confidence:.0%} interval", "p", "p (Holm)")
    for one in found:
        interval = f"{one.low:+.3f} – {one.high:+.3f}"
        numbers = (str(one.prompts), f"{one.difference:+.3f}", interval, f"{one.p:.4f}", f"{one.p_holm:.4f}")
        table.add_row(f"{one.one} – {one.other}", *numbers)
    return [asdict(one) for one in found], table


def _agreement(options: argparse.Namespace, drawing: tuple[int, float, int]) -> tuple[Any, Table]:
    found = agreements(read_labels(dict(options.files)), *drawing)
    if not found:
        raise UserError("no two raters rated anything in common")
    table = Table("raters", "rated by all", "equal", f"{options.confidence:.0%} interval", "kappa", "interval")
    for one in found:
        equal = (f"{one.share:.3f}", f"{one.share_low:.3f} – {one.share_high:.3f}")
        known = one.kappa is not None
        kappa = (f"{one.kappa:.3f}", f"{one.kappa_low:.3f} – {one.kappa_high:.3f}") if known else ("–", "–")
        table.add_row(", ".join(one.raters), str(one.items), *equal, *kappa)
    return [asdict(one) for one in found], table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gradfiltering.judge", description=__doc__)
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
    return parser


def _common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command.add_argument("--resamples", type=_resamples, default=RESAMPLES, help="bootstrap resamples (%(default)s)")
    command.add_argument("--confidence", type=_confidence, default=CONFIDENCE, help="of the interval (%(default)s)")
    command.add_argument("--seed", type=int, default=SEED, help="of the bootstrap (%(default)s)")


def _named_file(text: str) -> tuple[str, Path]:
    name, separator, file = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"{text}: give NAME=FILE")
    return name, Path(file)


def _resamples(text: str) -> int:
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
