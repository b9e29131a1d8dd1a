"""`gradfiltering report`: pages and tables of earlier runs."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Write pages and tables of what earlier runs left.", no_args_is_help=True)
Folder = Annotated[Path, typer.Argument(help="Folder of a run or of a sweep.")]


@app.command()
def page(
    run_folder: Folder,
    row_count: Annotated[
        str | None,
        typer.Option("--rows", metavar="N", help="Rows with their text, or `all`; by default as the run said."),
    ] = None,
    write_figures: Annotated[
        bool, typer.Option("--figures/--no-figures", help="Write the charts as PNG and SVG into figures/, too.")
    ] = True,
) -> None:
    """Write report.html of a run anew."""
    from gradfiltering.reports.page.run_page import write_page

    typer.echo(write_page(run_folder, row_count, write_figures))


@app.command()
def sweep(
    sweep_folder: Folder,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference", metavar="SETTING", help="Compare the other settings with this one alone, not every two."
        ),
    ] = None,
) -> None:
    """Write page and tables of a sweep: sweep.html, sweep.csv, sweep.json and tables/."""
    from rich.console import Console

    from gradfiltering.reports.sweep_table import write_sweep

    write_sweep(sweep_folder, Console(), reference)
