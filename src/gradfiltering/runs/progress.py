"""The screen while a run works: the stage it is in, the work at hand, and the time left.

Domain code says what it works on by `track` and `progress_bar`, and knows nothing of terminals or ranks. On a terminal
one live display shows it; elsewhere (pipes, logs of CI and SLURM) plain lines do, at stage starts and every 30 seconds.
Rank zero alone shows anything.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from gradfiltering.distributed.process_group import is_rank_zero_at_launch, rank
from gradfiltering.runs.run_displays import LiveDisplay, PlainDisplay, ProgressBar, RunDisplay

if TYPE_CHECKING:
    from rich.console import Console

Item = TypeVar("Item")


_current_display: RunDisplay | None = None


def new_console() -> "Console":
    """Return a console on standard output: it breaks lines between words for a terminal, and not at all for a file."""
    from rich.console import Console

    console = Console(highlight=False)
    console.soft_wrap = not console.is_terminal
    return console


@contextmanager
def run_display(show_bars: bool = True, live: bool = True, label: str = "") -> Iterator[RunDisplay]:
    """Show what the run does while the block runs: live on a terminal, else in plain lines, on rank zero alone.

    Within another such block its display goes on.

    Args:
        show_bars: False for the lines of stages alone.
        live: False for plain lines even on a terminal, which other processes write to as well.
        label: see `PlainDisplay`.
    """
    global _current_display
    if _current_display is not None:
        yield _current_display
        return
    display: RunDisplay
    if rank() or not is_rank_zero_at_launch():
        display = RunDisplay()
    else:
        console = new_console()
        is_live = live and show_bars and console.is_terminal and not console.is_dumb_terminal and sys.stdout.isatty()
        display = LiveDisplay(console) if is_live else PlainDisplay(console, show_bars, label)
    _current_display = display
    try:
        with display.shown():
            yield display
    finally:
        _current_display = None


def current_display() -> RunDisplay:
    """Return the display of the run; one that shows nothing where there is none."""
    return RunDisplay() if _current_display is None else _current_display


def current_console() -> "Console | None":
    """Return the console that prints above a live display; None where there is no such display."""
    return None if _current_display is None else _current_display.open_console()


@contextmanager
def progress_bar(description: str, total: int | None = None, unit: str = "rows") -> Iterator[ProgressBar]:
    """Show work while the block runs; the work in an inner block is shown in its place meanwhile.

    Args:
        description: of the work, in words: `training 3 members`.
        total: amount of work; None where nobody knows.
        unit: of amounts, in the plural.

    Yields:
        The bar, to be advanced.
    """
    with run_display() as display:
        bar = ProgressBar(display, description, total, unit)
        display.bars.append(bar)
        try:
            yield bar
        finally:
            display.bars.remove(bar)


def track(
    items: Iterable[Item],
    description: str,
    total: int | None = None,
    unit: str = "rows",
    amount_of: Callable[[Item], int] | None = None,
) -> Iterator[Item]:
    """Yield items and show how many of them are done.

    Args:
        items: of the work.
        description: of the work, in words.
        total: amount of work; None for the number of items, where they have one.
        unit: of amounts, in the plural.
        amount_of: amount of work of an item; None for 1.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress_bar(description, total, unit) as bar:
        for item in items:
            yield item
            bar.advance(1 if amount_of is None else amount_of(item))
