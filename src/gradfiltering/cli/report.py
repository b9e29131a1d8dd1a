"""`gradfiltering report`: pages and tables of earlier runs."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Write pages and tables of what earlier runs left.", no_args_is_help=True)
Folder = Annotated[Path, typer.Argument(help="Folder of a run or of a sweep.")]


@app.command()
def page(
    folder: Folder,
    rows: Annotated[
        str | None, typer.Option(help="Rows the page holds with their text, or `all`; by default as the run said.")
    ] = None,
    figures: Annotated[bool, typer.Option(help="Write the charts as PNG and SVG into figures/, too.")] = True,
) -> None:
    """Write report.html of a run anew."""
    from gradfiltering.reports.page.run_page import write_page

    typer.echo(write_page(folder, rows, figures))


@app.command()
def sweep(folder: Folder) -> None:
    """Write page and tables of a sweep: sweep.html, sweep.csv, sweep.json and tables/."""
    from rich.console import Console

    from gradfiltering.reports.sweep_table import write_sweep

    write_sweep(folder, Console())
