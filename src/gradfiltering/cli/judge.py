"""`gradfiltering judge`: stored judgements counted again, compared, and benchmarks of a run's models."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradfiltering.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(help="Count stored judgements again, compare candidates, and benchmark models.", no_args_is_help=True)

# A run takes these from conf/shared/judging.yaml and conf/train.yaml; a test keeps the two equal.
RESAMPLES = 10_000
CONFIDENCE = 0.95
SEED = 0


def _check_confidence(value: float) -> float:
    if not 0 < value < 1:
        raise typer.BadParameter("must lie between 0 and 1, both excluded")
    return value


def _parse_named_file(text: str) -> tuple[str, Path]:
    name, separator, file = text.partition("=")
    if not separator or not name:
        raise typer.BadParameter(f"{text}: give NAME=FILE")
    return name, Path(file)


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Resamples = Annotated[int, typer.Option(min=1, help="Bootstrap resamples.")]
Confidence = Annotated[float, typer.Option(callback=_check_confidence, help="Of the intervals.")]
Seed = Annotated[int, typer.Option(help="Of the bootstrap.")]
NamedFile = Annotated[
    list[Any],
    typer.Argument(metavar="NAME=FILE", parser=_parse_named_file, help="verdicts.jsonl of a run, under a name."),
]


@app.command()
def rescore(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="verdicts.jsonl of a run, or a published review file (.json).")
    ],
    resamples: Resamples = RESAMPLES,
    confidence: Confidence = CONFIDENCE,
    seed: Seed = SEED,
    as_json: AsJson = False,
) -> None:
    """Count wins, ties, losses and PWS of stored judgements, per file and pooled."""
    from gradfiltering.judging.rescoring import rescore_files

    entries = rescore_files(files, resamples, confidence, seed)
    if as_json:
        return _print_json(entries)
    table = _table("judgements", "wins", "ties", "losses", "unparsed", "PWS", f"{confidence:.0%} interval")
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.justify = "right"
    for name, entry in entries.items():
        counts = [str(entry[key]) for key in ("wins", "ties", "losses", "unparsed")]
        score, interval = "–", "–"
        if entry["pws"] is not None:
            score, interval = f"{entry['pws']:.3f}", f"{entry['low']:.3f} – {entry['high']:.3f}"
        table.add_row(name, *counts, score, interval)
    _print_table(table)


@app.command()
def compare(
    files: NamedFile,
    against: Annotated[str, typer.Option(help="The baseline they share.")] = "full",
    resamples: Resamples = RESAMPLES,
    confidence: Confidence = CONFIDENCE,
    seed: Seed = SEED,
    as_json: AsJson = False,
) -> None:
    """Compare several candidates on the same prompts by a paired bootstrap with Holm's correction."""
    from gradfiltering.judging.verdict_summary import read_outcomes
    from gradfiltering.statistics.paired_comparison import compare_candidates

    if len(dict(files)) < max(2, len(files)):
        raise UserError("give at least two files under different names, NAME=verdicts.jsonl")
    comparisons = compare_candidates(read_outcomes(dict(files), against), resamples, confidence, seed)
    if as_json:
        return _print_json([comparison.to_json() for comparison in comparisons])
    table = _table("candidates", "prompts", "PWS difference", f"{confidence:.0%} interval", "p", "p (Holm)")
    for comparison in comparisons:
        table.add_row(
            f"{comparison.first_name} – {comparison.second_name}",
            str(comparison.prompts),
            f"{comparison.difference:+.3f}",
            f"{comparison.low:+.3f} – {comparison.high:+.3f}",
            f"{comparison.p:.4f}",
            f"{comparison.p_holm:.4f}",
        )
    _print_table(table)


@app.command()
def agreement(
    files: NamedFile,
    resamples: Resamples = RESAMPLES,
    confidence: Confidence = CONFIDENCE,
    seed: Seed = SEED,
    as_json: AsJson = False,
) -> None:
    """Measure how judges and people agree: share of equal verdicts, Cohen's and Fleiss' kappa."""
    from gradfiltering.judging.verdict_summary import read_labels
    from gradfiltering.statistics.agreement import measure_agreements

    measured = measure_agreements(read_labels(dict(files)), resamples, confidence, seed)
    if not measured:
        raise UserError("no two raters rated anything in common")
    if as_json:
        return _print_json([asdict(pair) for pair in measured])
    table = _table("raters", "rated by all", "equal", f"{confidence:.0%} interval", "kappa", "interval")
    for pair in measured:
        has_kappa = pair.kappa is not None
        table.add_row(
            ", ".join(pair.raters),
            str(pair.items),
            f"{pair.share:.3f}",
            f"{pair.share_low:.3f} – {pair.share_high:.3f}",
            f"{pair.kappa:.3f}" if has_kappa else "–",
            f"{pair.kappa_low:.3f} – {pair.kappa_high:.3f}" if has_kappa else "–",
        )
    _print_table(table)


@app.command()
def harness(
    folder: Annotated[Path, typer.Argument(help="Folder of a run; its summary.json gets the results.")],
    tasks: Annotated[str, typer.Option(metavar="NAME,...", help="Tasks or groups of tasks.")],
    model: Annotated[str, typer.Option(help="candidate, full or random.")] = "candidate",
    include: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Task files of your own.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many documents of each task.")] = None,
    shots: Annotated[int | None, typer.Option(help="Examples in the prompt; by default as each task says.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put prompts into the model's chat template.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at once.")] = 8,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Run benchmarks of lm-evaluation-harness on a model of a run."""
    from gradfiltering.judging.lm_harness import run_harness

    task_names = [name for name in tasks.split(",") if name]
    results = run_harness(folder, model, task_names, include, limit, shots, chat, batch_size, device)
    if as_json:
        return _print_json(results)
    table = _table("task", "metric", "value", "standard error", "documents", "shots")
    for task, entry in results.items():
        for metric, measured in entry["metrics"].items():
            standard_error = "–" if measured["stderr"] is None else f"{measured['stderr']:.4f}"
            table.add_row(
                task,
                metric,
                f"{measured['value']:.4f}",
                standard_error,
                str(entry["samples"]),
                str(entry["shots"]),
            )
    _print_table(table)


def _print_json(results: Mapping[str, Any] | Sequence[Any]) -> None:
    typer.echo(json.dumps(results, indent=2, allow_nan=False))


def _table(*headers: str) -> "Table":
    from rich.table import Table

    return Table(*headers)


def _print_table(table: "Table") -> None:
    from rich.console import Console

    Console().print(table)
