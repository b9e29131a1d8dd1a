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


def _check_confidence(confidence_level: float) -> float:
    if not 0 < confidence_level < 1:
        raise typer.BadParameter("must lie between 0 and 1, both excluded")
    return confidence_level


def _parse_named_file(argument_text: str) -> tuple[str, Path]:
    name, equals_sign, file_name = argument_text.partition("=")
    if not equals_sign or not name:
        raise typer.BadParameter(f"{argument_text}: give NAME=FILE")
    return name, Path(file_name)


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Resamples = Annotated[int, typer.Option("--resamples", min=1, help="Bootstrap resamples.")]
Confidence = Annotated[float, typer.Option("--confidence", callback=_check_confidence, help="Of the intervals.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of the bootstrap.")]
NamedFile = Annotated[
    list[Any],
    typer.Argument(metavar="NAME=FILE", parser=_parse_named_file, help="verdicts.jsonl of a run, under a name."),
]


@app.command()
def rescore(
    judgement_files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="verdicts.jsonl of a run, or a published review file (.json).")
    ],
    resample_count: Resamples = RESAMPLES,
    confidence_level: Confidence = CONFIDENCE,
    bootstrap_seed: Seed = SEED,
    as_json: AsJson = False,
) -> None:
    """Count wins, ties, losses and PWS of stored judgements, per file and pooled."""
    from gradfiltering.judging.rescoring import rescore_files

    count_entries = rescore_files(judgement_files, resample_count, confidence_level, bootstrap_seed)
    if as_json:
        return _print_json(count_entries)
    count_table = _table("judgements", "wins", "ties", "losses", "unparsed", "PWS", f"{confidence_level:.0%} interval")
    count_table.columns[0].overflow = "fold"
    for number_column in count_table.columns[1:]:
        number_column.justify = "right"
    for file_name, file_counts in count_entries.items():
        verdict_counts = [str(file_counts[count_name]) for count_name in ("wins", "ties", "losses", "unparsed")]
        score_text, interval_text = "–", "–"
        if file_counts["pws"] is not None:
            score_text, interval_text = (
                f"{file_counts['pws']:.3f}",
                f"{file_counts['low']:.3f} – {file_counts['high']:.3f}",
            )
        count_table.add_row(file_name, *verdict_counts, score_text, interval_text)
    _print_table(count_table)


@app.command()
def compare(
    named_files: NamedFile,
    baseline_name: Annotated[str, typer.Option("--against", help="The baseline they share.")] = "full",
    resample_count: Resamples = RESAMPLES,
    confidence_level: Confidence = CONFIDENCE,
    bootstrap_seed: Seed = SEED,
    as_json: AsJson = False,
) -> None:
    """Compare several candidates on the same prompts by a paired bootstrap with Holm's correction."""
    from gradfiltering.judging.verdict_summary import read_outcomes
    from gradfiltering.statistics.paired_comparison import compare_candidates

    if len(dict(named_files)) < max(2, len(named_files)):
        raise UserError("give at least two files under different names, NAME=verdicts.jsonl")
    outcomes = read_outcomes(dict(named_files), baseline_name)
    comparisons = compare_candidates(outcomes, resample_count, confidence_level, bootstrap_seed)
    if as_json:
        return _print_json([comparison.to_json() for comparison in comparisons])
    comparison_table = _table(
        "candidates", "prompts", "PWS difference", f"{confidence_level:.0%} interval", "p", "p (Holm)"
    )
    for comparison in comparisons:
        comparison_table.add_row(
            f"{comparison.first_name} – {comparison.second_name}",
            str(comparison.prompts),
            f"{comparison.difference:+.3f}",
            f"{comparison.low:+.3f} – {comparison.high:+.3f}",
            f"{comparison.p:.4f}",
            f"{comparison.p_holm:.4f}",
        )
    _print_table(comparison_table)


@app.command()
def agreement(
    named_files: NamedFile,
    resample_count: Resamples = RESAMPLES,
    confidence_level: Confidence = CONFIDENCE,
    bootstrap_seed: Seed = SEED,
    as_json: AsJson = False,
) -> None:
    """Measure how judges and people agree: share of equal verdicts, Cohen's and Fleiss' kappa."""
    from gradfiltering.judging.verdict_summary import read_labels
    from gradfiltering.statistics.agreement import measure_agreements

    rater_labels = read_labels(dict(named_files))
    rater_agreements = measure_agreements(rater_labels, resample_count, confidence_level, bootstrap_seed)
    if not rater_agreements:
        raise UserError("no two raters rated anything in common")
    if as_json:
        return _print_json([asdict(rater_pair) for rater_pair in rater_agreements])
    agreement_table = _table("raters", "rated by all", "equal", f"{confidence_level:.0%} interval", "kappa", "interval")
    for rater_pair in rater_agreements:
        has_kappa = rater_pair.kappa is not None
        agreement_table.add_row(
            ", ".join(rater_pair.raters),
            str(rater_pair.items),
            f"{rater_pair.share:.3f}",
            f"{rater_pair.share_low:.3f} – {rater_pair.share_high:.3f}",
            f"{rater_pair.kappa:.3f}" if has_kappa else "–",
            f"{rater_pair.kappa_low:.3f} – {rater_pair.kappa_high:.3f}" if has_kappa else "–",
        )
    _print_table(agreement_table)


@app.command()
def harness(
    run_folder: Annotated[Path, typer.Argument(help="Folder of a run; its summary.json gets the results.")],
    tasks: Annotated[str, typer.Option(metavar="NAME,...", help="Tasks or groups of tasks.")],
    model_name: Annotated[str, typer.Option("--model", help="candidate, full or random.")] = "candidate",
    task_folder: Annotated[
        Path | None, typer.Option("--include", metavar="FOLDER", help="Task files of your own.")
    ] = None,
    document_limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Only this many documents of each task, from its start.")
    ] = None,
    shot_count: Annotated[
        int | None, typer.Option("--shots", min=0, help="Examples in the prompt; by default as each task says.")
    ] = None,
    use_chat_template: Annotated[
        bool, typer.Option("--chat", help="Put prompts into the model's chat template.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at once.")] = 8,
    device_name: Annotated[str, typer.Option("--device", help="cpu, cuda, or auto.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Run benchmarks of lm-evaluation-harness on a model of a run."""
    from gradfiltering.judging.lm_harness import run_harness

    task_names = [name for name in tasks.split(",") if name]
    task_results = run_harness(
        run_folder=run_folder,
        model_name=model_name,
        task_names=task_names,
        task_folder=task_folder,
        document_limit=document_limit,
        shot_count=shot_count,
        use_chat_template=use_chat_template,
        batch_size=batch_size,
        device_name=device_name,
    )
    if as_json:
        return _print_json(task_results)
    benchmark_table = _table("task", "metric", "value", "standard error", "documents", "shots")
    for task_name, task_result in task_results.items():
        for metric_name, metric_value in task_result["metrics"].items():
            standard_error = "–" if metric_value["stderr"] is None else f"{metric_value['stderr']:.4f}"
            benchmark_table.add_row(
                task_name,
                metric_name,
                f"{metric_value['value']:.4f}",
                standard_error,
                str(task_result["samples"]),
                str(task_result["shots"]),
            )
    _print_table(benchmark_table)


def _print_json(results: Mapping[str, Any] | Sequence[Any]) -> None:
    typer.echo(json.dumps(results, indent=2, allow_nan=False))


def _table(*column_headers: str) -> "Table":
    from rich.table import Table

    return Table(*column_headers)


def _print_table(table: "Table") -> None:
    from rich.console import Console

    Console(markup=False).print(table)  # names of files and raters are no markup
