"""The commands that follow `gradfiltering`, and what they take."""

from pathlib import Path
from typing import Annotated

import typer

from gradfiltering.cli import cache, judge, report, select

app = typer.Typer(
    help="Which part of my instruction data should I train on, and how do I know?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(judge.app, name="judge")
app.add_typer(report.app, name="report")
app.add_typer(cache.app, name="cache")
app.command(name="select")(select.select_rows)


@app.command(name="compare")
def compare_runs(
    first_folder: Annotated[Path, typer.Argument(metavar="RUN_A", help="Folder of a run.")],
    second_folder: Annotated[Path, typer.Argument(metavar="RUN_B", help="Folder of another run on the same rows.")],
    page_path: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="The page; by default comparison.html in the folder of RUN_B."),
    ] = None,
) -> None:
    """Write a page that compares two runs: overlap, rows that only one selected, ranks and verdicts."""
    from gradfiltering.reports.page.comparison_page import write_comparison

    typer.echo(write_comparison(first_folder, second_folder, page_path))


@app.command(name="run", context_settings={"ignore_unknown_options": True, "help_option_names": []})
def run_experiment(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[GROUP=OPTION | NAME=VALUE]...")] = None,
) -> None:
    """Run an experiment, or with -m a sweep of them; `gradfiltering run --help` lists all options."""
    raise AssertionError("`main` passes this command to Hydra unread")
