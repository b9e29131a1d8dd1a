"""`gradfiltering cache`: what the cache holds, why a result was not reused, is it whole, what can go."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradfiltering.config.locations import default_cache_folder
from gradfiltering.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

MOST_AMOUNT = 100_000  # days or GiB; dates do not go on without end

app = typer.Typer(help="Look after the cache of finished results.", no_args_is_help=True)
CacheFolder = Annotated[
    Path,
    typer.Option(
        "--path", default_factory=default_cache_folder, show_default="where runs keep it", help="Folder of the cache."
    ),
]


def _check_amount(given_amount: float | None) -> float | None:
    if given_amount is not None and not 0 <= given_amount <= MOST_AMOUNT:
        raise typer.BadParameter(f"must lie between 0 and {MOST_AMOUNT}")
    return given_amount


@app.command(name="list")
def list_results(cache_folder: CacheFolder) -> None:
    """List finished results and what interrupted runs left to resume from."""
    from gradfiltering.runs.cache_maintenance import show_entries

    show_entries(_check_exists(cache_folder), _console())


@app.command()
def why(
    result_digits: Annotated[
        str, typer.Argument(metavar="RESULT", help="First digits of a result's key, as `list` shows them.")
    ],
    cache_folder: CacheFolder,
) -> None:
    """Show in which fields a result's key differs from the nearest of its kind, and so why none of them was reused."""
    from gradfiltering.runs.cache_maintenance import explain_difference

    explain_difference(_check_exists(cache_folder), result_digits, _console())


@app.command()
def verify(cache_folder: CacheFolder) -> None:
    """Compare every file with its checksum; exit status 1 if any differs."""
    from gradfiltering.runs.cache_maintenance import verify_entries

    verify_entries(_check_exists(cache_folder), _console())


@app.command()
def prune(
    cache_folder: CacheFolder,
    older_than: Annotated[
        float | None,
        typer.Option(metavar="DAYS", callback=_check_amount, help="Results made this many days ago or earlier."),
    ] = None,
    larger_than: Annotated[
        float | None,
        typer.Option(metavar="GIB", callback=_check_amount, help="The oldest results, until the cache is this small."),
    ] = None,
    unlinked_only: Annotated[bool, typer.Option("--unlinked", help="Only results no run folder links to.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, delete nothing.")] = False,
) -> None:
    """Delete results, and what killed processes left half-written."""
    from gradfiltering.runs.cache_maintenance import list_entries, prune_entries, select_prunable

    if older_than is None and larger_than is None and not unlinked_only:
        raise UserError("prune what? Give --older-than, --larger-than or --unlinked")
    pruned_results = select_prunable(list_entries(_check_exists(cache_folder)), older_than, larger_than, unlinked_only)
    prune_entries(cache_folder, pruned_results, dry_run, _console())


def _check_exists(cache_folder: Path) -> Path:
    if not cache_folder.is_dir():
        raise UserError(f"there is no cache at {cache_folder}; name it with --path")
    return cache_folder


def _console() -> "Console":
    from rich.console import Console

    return Console(soft_wrap=True)
