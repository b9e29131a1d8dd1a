"""Displays of a run: its stages and the work at hand, live on a terminal or in plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gradfiltering.distributed.process_group import call_before_hard_exit
from gradfiltering.runs.screen_words import describe_duration, describe_stage, describe_time_left

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.live import Live
    from rich.table import Table


LINE_SECONDS = 30  # between two plain lines about the same work
LONG_STAGE_SECONDS = 2  # a plain line says how long a stage took that took longer
BAR_SECONDS = 0.5  # work that has taken less has no bar yet
REFRESHES_PER_SECOND = 5
BAR_WIDTH = 24
SHORTEST_DESCRIPTION = 20  # characters, where there is no room for more


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
