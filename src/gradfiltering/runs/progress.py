"""The screen while a run works: the stage it is in, the work at hand, and the time left.

Domain code says what it works on by `track` and `progress_bar`, and knows nothing of terminals or ranks. On a terminal
one live display shows it; elsewhere (pipes, logs of CI and SLURM) plain lines do, at stage starts and every 30 seconds.
Rank zero alone shows anything.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from gradfiltering.distributed.process_group import call_before_hard_exit, is_rank_zero_at_launch, rank

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.live import Live
    from rich.table import Table

Item = TypeVar("Item")

LINE_SECONDS = 30  # between two plain lines about the same work
LONG_STAGE_SECONDS = 2  # a plain line says how long a stage took that took longer
BAR_SECONDS = 0.5  # work that has taken less has no bar yet
REFRESHES_PER_SECOND = 5
BAR_WIDTH = 24
SHORTEST_DESCRIPTION = 20  # characters, where there is no room for more

# Stage in the summary -> what it does, on the screen.
STAGE_WORDS = {
    "libraries": "loading libraries",
    "data": "reading the rows",
    "judge_check": "trying the judge on labelled pairs",
    "base_model": "loading the proxy model",
    "base_model_passes": "measuring rows without adapters",
    "reference": "measuring both answers under the base model",
    "proxy": "training the ensemble and measuring rows",
    "heldout_member": "measuring the held-out loss with one more member",
    "influence": "comparing the rows' gradients with the task's",
    "score": "scoring the rows",
    "select": "selecting rows",
    "diagnostics": "diagnosing scores and selection",
    "target": "training the target model",
    "judge": "answering prompts and judging the answers",
    "report": "writing the page",
}


def describe_stage(stage_name: str) -> str:
    """Return what a stage does, in words."""
    return STAGE_WORDS.get(stage_name, stage_name.replace("_", " "))


def describe_duration(seconds: float) -> str:
    """Write a duration as people say it: `45 s`, `12 min`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def describe_time_left(seconds: float) -> str:
    """Write a time left, which nobody knows to a tenth of a second."""
    return f"{describe_duration(max(10.0, seconds)) if seconds >= 10 else f'{max(1.0, seconds):.0f} s'} left"


class ProgressBar:
    """Work of which some is done.

    Args:
        display: shows it.
        description: of the work, in words: `training 3 members`.
        total: amount of work; None where nobody knows.
        unit: of amounts, in the plural: `rows`.

    Attributes:
        completed: amount that is done.
    """

    def __init__(self, display: "RunDisplay", description: str, total: int | None, unit: str):
        self.display = display
        self.description = description
        self.total = total
        self.unit = unit
        self.completed = 0
        self.started_at = display.clock()

    def advance(self, amount: int = 1) -> None:
        """Count further work as done."""
        self.complete(self.completed + amount)

    def complete(self, amount: int) -> None:
        """Say how much is done in all."""
        self.completed = amount if self.total is None else min(amount, self.total)
        self.display.show_progress(self)

    @property
    def seconds(self) -> float:
        """Time since the work began."""
        return self.display.clock() - self.started_at

    @property
    def seconds_left(self) -> float | None:
        """Time that the rest takes at the pace so far; None where that is not known."""
        if self.total is None or not self.completed or self.seconds <= 0:
            return None
        return (self.total - self.completed) * self.seconds / self.completed

    def describe_facts(self) -> list[str]:
        """List amount, rate and time left, where known: `600 of 1,200 steps`, `8.2 steps/s`, `1 min left`."""
        if self.total is None:
            amount = f"{self.completed:,} {self.unit}" if self.completed else describe_duration(self.seconds)
            return [amount]
        facts = [f"{self.completed:,} of {self.total:,} {self.unit}"]
        seconds_left = self.seconds_left
        if seconds_left is not None and self.completed < self.total:
            rate = self.completed / self.seconds
            per_second = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
            facts.append(f"{per_second} {self.unit}/s" if rate >= 1 else f"{60 * rate:.1f} {self.unit}/min")
            facts.append(describe_time_left(seconds_left))
        return facts


class RunDisplay:
    """Account of a run's stages and of the work at hand; shows nothing by itself.

    Args:
        clock: seconds of a monotonic clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self.bars: list[ProgressBar] = []  # innermost last
        self.stage_name: str | None = None
        self.stage_started_at = clock()
        self.stage_reused = False
        self.stage_names: list[str] = []
        self.planned_seconds: dict[str, float] = {}
        self.stages_begun = 0

    def set_plan(self, stage_names: Sequence[str], planned_seconds: Mapping[str, float]) -> None:
        """Take in all stages of the run in their order, ended ones included, and how long they are expected to take.

        Args:
            stage_names: as in the summary.
            planned_seconds: stage -> seconds; empty where nothing is known.
        """
        self.stage_names = list(stage_names)
        self.planned_seconds = dict(planned_seconds)

    def begin_stage(self, stage_name: str) -> None:
        """Begin a stage; the one before lasts until then, work between the two included."""
        self.end_stage()
        self.stage_name, self.stage_started_at, self.stage_reused = stage_name, self.clock(), False
        self.show_stage_begin()

    def end_stage(self) -> None:
        """End the present stage, if there is one."""
        if self.stage_name is not None:
            self.show_stage_end()
            self.stage_name = None

    @property
    def stage_number(self) -> int | None:
        """Number of the present stage, from 1; None where the plan does not have it."""
        if self.stage_name is None or self.stage_name not in self.stage_names:
            return None
        return self.stage_names.index(self.stage_name) + 1

    @property
    def stage_seconds(self) -> float:
        """Time since the present stage began."""
        return self.clock() - self.stage_started_at

    @property
    def seconds_left(self) -> float | None:
        """Time to the run's end: later stages as planned, and the rest of the present one; None without a plan."""
        if self.stage_number is None or not self.planned_seconds or self.stage_name is None:
            return None
        later_seconds = sum(self.planned_seconds.get(name, 0.0) for name in self.stage_names[self.stage_number :])
        planned_rest = self.planned_seconds.get(self.stage_name, 0.0) - self.stage_seconds
        extrapolated_rest = [bar.seconds_left or 0.0 for bar in self.bars]
        return later_seconds + max(planned_rest, *extrapolated_rest, 0.0)

    def describe_stage_number(self) -> str:
        """Return `stage 4 of 8`; empty where it is not known."""
        return "" if self.stage_number is None else f"stage {self.stage_number} of {len(self.stage_names)}"

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the account while the block runs."""
        yield

    def open_console(self) -> "Console | None":
        """Return the console that other lines are to be printed by; None for any."""
        return None

    def show_stage_begin(self) -> None:
        """Show that a stage begins."""

    def show_stage_end(self) -> None:
        """Show that a stage has ended."""

    def show_progress(self, bar: ProgressBar) -> None:
        """Show that work went on."""


class LiveDisplay(RunDisplay):
    """Two lines at the bottom of a terminal: the stage, and under it a bar of the work at hand.

    Args:
        console: of the terminal.
        clock: seconds of a monotonic clock.
    """

    def __init__(self, console: "Console", clock: Callable[[], float] = time.monotonic):
        super().__init__(clock)
        self.console = console
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the display while the block runs; the terminal is as before afterwards, however the block ends."""
        from rich.live import Live

        live = Live(
            get_renderable=lambda: self,
            console=self.console,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
        )
        self._live = live
        with call_before_hard_exit(live.stop), live:
            yield
            self.end_stage()

    def open_console(self) -> "Console":
        """Return the console, which prints above the display."""
        return self.console

    def show_stage_end(self) -> None:
        """Print a line that stays."""
        assert self.stage_name is not None
        from rich.text import Text

        reused_words = ", from the cache" if self.stage_reused else ""
        seconds = describe_duration(self.stage_seconds)
        line = Text.assemble(("✓ ", "green"), describe_stage(self.stage_name), (f" · {seconds}{reused_words}", "dim"))
        self.console.print(line)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        """Render the two lines."""
        from rich.text import Text

        bar = self.bars[-1] if self.bars else None
        if self.stage_name is not None:
            seconds_left = self.seconds_left
            stage_parts = [
                self.describe_stage_number(),
                describe_stage(self.stage_name),
                "" if seconds_left is None else describe_time_left(seconds_left),
            ]
            stage_line = " · ".join(part for part in stage_parts if part)
            yield Text(stage_line, "bold", no_wrap=True, overflow="ellipsis")
        if bar is None and self.stage_name is not None:
            bar = ProgressBar(self, "", None, "")
            bar.started_at = self.stage_started_at
        if bar is not None and bar.seconds >= BAR_SECONDS:
            yield self._render_bar(bar, options.max_width)

    def _render_bar(self, bar: ProgressBar, width: int) -> "Table":
        from rich.progress_bar import ProgressBar as BarDrawing
        from rich.table import Table
        from rich.text import Text

        facts = bar.describe_facts()
        bar_width = min(BAR_WIDTH, max(6, width // 6))
        indent = 2
        # The rate gives way first, then the end of the description, then the time left.
        for least_description in (len(bar.description), SHORTEST_DESCRIPTION):
            least_width = bar_width + min(len(bar.description), least_description) + indent + 2
            if len(facts) > 1 and len(" · ".join(facts)) + least_width > width:
                facts.pop(1)
        room = max(0, width - indent - bar_width - 2 - len(" · ".join(facts)))
        description = Text(bar.description[:room], no_wrap=True, overflow="ellipsis")
        drawing = BarDrawing(bar.total, bar.completed, bar_width, pulse=bar.total is None, animation_time=bar.seconds)
        grid = Table.grid(padding=(0, 1))
        cells: list[RenderableType] = [
            *([description] if bar.description else []),
            drawing,
            Text(" · ".join(facts), "dim", no_wrap=True),
        ]
        grid.add_row(" ", *cells)
        return grid


class PlainDisplay(RunDisplay):
    """Lines for whatever is no terminal: as a stage begins, every 30 s, and as a stage of more than 2 s ends.

    Args:
        console: prints the lines.
        show_bars: False for the lines of stages alone.
        label: stands before each line, to tell jobs apart that run at the same time.
        clock: seconds of a monotonic clock.
    """

    def __init__(
        self,
        console: "Console",
        show_bars: bool = True,
        label: str = "",
        clock: Callable[[], float] = time.monotonic,
    ):
        super().__init__(clock)
        self.console = console
        self.show_bars = show_bars
        self.label = label
        self._printed_at = clock()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """End the last stage as the block ends."""
        yield
        self.end_stage()

    def show_stage_begin(self) -> None:
        """Print which stage begins."""
        assert self.stage_name is not None
        stage_number, seconds_left = self.describe_stage_number(), self.seconds_left
        numbered = f"{stage_number}: " if stage_number else ""
        time_words = "" if seconds_left is None else f", about {describe_time_left(seconds_left)} in all"
        self._print(f"{numbered}{describe_stage(self.stage_name)}{time_words}")

    def show_stage_end(self) -> None:
        """Print how long a long stage took."""
        if self.stage_seconds >= LONG_STAGE_SECONDS:
            reused_words = ", with results from the cache" if self.stage_reused else ""
            self._print(f"  done in {describe_duration(self.stage_seconds)}{reused_words}")

    def show_progress(self, bar: ProgressBar) -> None:
        """Print how far the work is, now and then."""
        is_innermost = bool(self.bars) and bar is self.bars[-1]
        if self.show_bars and is_innermost and self.clock() - self._printed_at >= LINE_SECONDS:
            self._print(f"  {bar.description}: {', '.join(bar.describe_facts())}")

    def _print(self, line: str) -> None:
        self._printed_at = self.clock()
        self.console.print(f"{self.label}{line}", markup=False, highlight=False, soft_wrap=True)


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
