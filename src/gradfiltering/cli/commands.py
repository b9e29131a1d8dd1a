"""The commands that follow `gradfiltering`, and what they take."""

from typing import Annotated

import typer

from gradfiltering.cli import cache, judge, report

app = typer.Typer(
    help="Which part of my instruction data should I train on, and how do I know?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(judge.app, name="judge")
app.add_typer(report.app, name="report")
app.add_typer(cache.app, name="cache")


@app.command(name="run", context_settings={"ignore_unknown_options": True, "help_option_names": []})
def run_experiment(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[GROUP=OPTION | NAME=VALUE]...")] = None,
) -> None:
    """Run an experiment, or with -m a sweep of them; `gradfiltering run --help` lists all options."""
    raise AssertionError("`main` passes this command to Hydra unread")
