"""Reports on what earlier runs left: `python -m gradfiltering.report sweep FOLDER`."""

import argparse
from pathlib import Path

from rich.console import Console

from gradfiltering.errors import plain_words
from gradfiltering.report.sweep import write_sweep


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m gradfiltering.report", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    sweep = commands.add_parser("sweep", help="page and tables of a sweep: sweep.html, sweep.csv, sweep.json, tables/")
    sweep.add_argument("folder", type=Path)
    options = parser.parse_args()
    with plain_words(debug=False):
        write_sweep(options.folder, Console())


if __name__ == "__main__":
    main()
