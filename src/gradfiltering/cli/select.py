"""`gradfiltering select`: rows selected anew from the gradient log that a run left, whatever its size."""

from pathlib import Path
from typing import Annotated

import typer

from gradfiltering.errors import UserError


def select_rows(
    run_folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run, or any folder with a gradient_log/.")
    ],
    output_folder: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder for scores, subset and page.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=VALUE]...",
            help="Options of scorer, selector, epochs, diagnostics, report, and seed: scorer=raw_drop "
            "selector=stratified selector.fraction=0.05. Scorer, epochs and seed are as in the run unless given; "
            "the others as in a new run.",
        ),
    ] = None,
) -> None:
    """Score a run's gradient log anew and select among its rows, in bounded memory; no model is loaded."""
    from gradfiltering.config.log_selection import select_from_log
    from gradfiltering.reports.screen import print_result
    from gradfiltering.runs.logs import screen
    from gradfiltering.runs.progress import run_display
    from gradfiltering.runs.run_folder import RunFolder

    if "=" in str(output_folder):
        raise UserError(f"give the folder of the selection before the options, not {output_folder}")
    with run_display():
        written_folder = select_from_log(run_folder, output_folder, overrides or ())
        print_result(RunFolder(written_folder).read_summary(), written_folder, screen())
