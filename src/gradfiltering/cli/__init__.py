"""The command `gradfiltering`: run experiments, and work with what earlier runs left."""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from gradfiltering.cli import cache, judge, report
from gradfiltering.errors import plain_words
from gradfiltering.interruption import ending_in_one_sentence

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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; whatever follows `run` goes to Hydra unread.

    Args:
        arguments: what follows the name of the command; None for those that this process was started with.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["run"]:
        with ending_in_one_sentence():
            from gradfiltering.config.launch import launch

        launch(arguments[1:], subcommand="run")
        return
    with ending_in_one_sentence(), plain_words():
        app(arguments, prog_name="gradfiltering")
