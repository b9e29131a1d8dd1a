"""Reports on what earlier runs left: `python -m gradfiltering.reports page FOLDER`, `… sweep FOLDER`."""

import argparse
from pathlib import Path

from rich.console import Console

from gradfiltering.errors import plain_words
from gradfiltering.reports.sweep_table import write_sweep


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m gradfiltering.reports", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    sweep = commands.add_parser("sweep", help="page and tables of a sweep: sweep.html, sweep.csv, sweep.json, tables/")
    sweep.add_argument("folder", type=Path)
    page = commands.add_parser("page", help="report.html of a run, and its charts as PNG and SVG in figures/")
    page.add_argument("folder", type=Path)
    page.add_argument("--rows", help="rows the page holds with their text, or all; as the run said where not given")
    page.add_argument("--no-figures", action="store_true", help="leave figures/ alone")
    options = parser.parse_args()
    with plain_words(debug=False):
        if options.command == "sweep":
            write_sweep(options.folder, Console())
        else:
            from gradfiltering.reports.page.build import (
                rebuild,  # takes seconds to load, which a sweep's table need not
            )

            Console().print(str(rebuild(options.folder, options.rows, not options.no_figures)), soft_wrap=True)


if __name__ == "__main__":
    main()
