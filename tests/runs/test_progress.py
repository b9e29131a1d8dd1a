import io
import subprocess
import sys

import pytest
from rich.console import Console

from gradfiltering.runs import progress
from gradfiltering.runs.logs import announce
from gradfiltering.runs.progress import current_display, progress_bar, run_display, track
from gradfiltering.runs.run_displays import LiveDisplay, PlainDisplay, ProgressBar, RunDisplay
from gradfiltering.runs.screen_words import STAGE_WORDS

CONTROL = "\x1b"


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def plain_display(clock, **options):
    return PlainDisplay(Console(file=io.StringIO(), width=80), clock=clock, **options)


def live_display(clock, width=80):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, soft_wrap=True, highlight=False)
    return LiveDisplay(console, clock=clock)


def use(monkeypatch, display):
    monkeypatch.setattr(progress, "_current_display", display)
    return display


def printed(display):
    return display.console.file.getvalue()


def drawn(display, width=80):
    """The live display's lines as they would stand on a terminal of some width."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(display)
    return console.file.getvalue().splitlines()


def test_live_lines_name_stage_work_pace_and_time_left(clock, monkeypatch):
    display = use(monkeypatch, live_display(clock))
    display.set_plan(["data", "proxy", "report"], {"proxy": 60.0, "report": 600.0})
    display.begin_stage("proxy")
    with progress_bar("training 3 members", 1200, "steps") as bar:
        clock.now += 60
        bar.advance(600)
        stage_line, bar_line = drawn(display)
    assert stage_line == f"stage 2 of 3 · {STAGE_WORDS['proxy']} · 11 min left"
    assert bar_line.split("━")[0] == "  training 3 members "
    assert bar_line.endswith(" 600 of 1,200 steps · 10 steps/s · 60 s left") and len(bar_line) <= 80


@pytest.mark.parametrize("width", [20, 40, 80, 160])
def test_live_lines_fit_any_terminal(clock, monkeypatch, width):
    display = use(monkeypatch, live_display(clock))
    display.set_plan(["data", "proxy"], {"proxy": 1e6})
    display.begin_stage("proxy")
    with progress_bar("a very long description of the work at hand, which no narrow terminal can show", 52_002) as bar:
        clock.now += 3600
        bar.advance(5_200)
        lines = drawn(display, width)
    assert len(lines) == 2 and all(len(line) <= width for line in lines), lines
    assert width < 80 or lines[1].endswith(" left"), "the time left stays longest"


def test_stage_without_a_bar_of_its_own_shows_its_seconds(clock):
    display = live_display(clock)
    display.begin_stage("libraries")
    assert drawn(display) == ["loading libraries"]
    clock.now += 7
    assert drawn(display)[1].endswith(" 7.0 s")


def test_inner_work_is_shown_in_the_place_of_outer_work(clock, monkeypatch):
    display = use(monkeypatch, live_display(clock))
    with progress_bar("outer", 10):
        clock.now += 1
        with progress_bar("inner", 10):
            clock.now += 1
            assert "inner" in drawn(display)[0] and len(drawn(display)) == 1
        assert "outer" in drawn(display)[0]
    assert drawn(display) == []


def test_a_failure_leaves_no_bar_behind(clock, monkeypatch):
    display = use(monkeypatch, live_display(clock))
    with pytest.raises(ZeroDivisionError), progress_bar("dividing", 10):
        divmod(1, 0)
    assert display.bars == []


def test_tracked_items_come_through_and_are_counted_by_amount(clock, monkeypatch):
    display = use(monkeypatch, RunDisplay(clock))
    counts = []
    for item in track(iter(["ab", "cde"]), "reading", 5, amount_of=len):
        counts.append((item, display.bars[0].completed, display.bars[0].total))
    assert counts == [("ab", 0, 5), ("cde", 2, 5)] and display.bars == []
    assert list(track([3, 1, 2], "reading")) == [3, 1, 2]


def test_time_left_counts_later_stages_and_the_slower_present_one(clock):
    display = RunDisplay(clock)
    display.begin_stage("proxy")
    assert display.seconds_left is None
    display.set_plan(["data", "proxy", "target", "report"], {"data": 5.0, "proxy": 100.0, "target": 40.0})
    clock.now += 30
    assert display.seconds_left == 40 + 70
    clock.now += 100  # longer than planned, with nothing known of the rest
    assert display.seconds_left == 40
    bar = ProgressBar(display, "training", 4, "steps")
    display.bars.append(bar)
    clock.now += 30
    bar.advance(1)
    assert bar.seconds_left == 90 and display.seconds_left == 40 + 90


def test_without_a_plan_stages_are_not_numbered(clock):
    display = plain_display(clock)
    display.begin_stage("data")
    display.set_plan(["data", "another_stage"], {})
    display.begin_stage("another_stage")
    assert printed(display) == "reading the rows\nstage 2 of 2: another stage\n"


def test_plain_lines_come_at_stages_and_every_half_minute(clock, monkeypatch):
    display = use(monkeypatch, plain_display(clock))
    display.set_plan(["data", "proxy"], {"data": 1.0, "proxy": 119.0})
    with display.shown():
        display.begin_stage("data")
        clock.now += 1.5
        display.begin_stage("proxy")
        for _ in track(range(60), "training 3 members", unit="steps"):
            clock.now += 1
        display.stage_reused = True
    assert printed(display) == (
        "stage 1 of 2: reading the rows, about 2 min left in all\n"
        f"stage 2 of 2: {STAGE_WORDS['proxy']}, about 2 min left in all\n"
        "  training 3 members: 30 of 60 steps, 1.0 steps/s, 30 s left\n"
        "  training 3 members: 60 of 60 steps\n"
        "  done in 60 s, with results from the cache\n"
    )


def test_progress_false_leaves_the_lines_of_stages_alone(clock, monkeypatch):
    display = use(monkeypatch, plain_display(clock, show_bars=False))
    display.begin_stage("data")
    for _ in track(range(60), "reading"):
        clock.now += 10
    assert printed(display) == "reading the rows\n"


def test_jobs_that_run_at_the_same_time_are_told_apart(clock):
    display = plain_display(clock, label="job 3: ")
    display.begin_stage("data")
    assert printed(display) == "job 3: reading the rows\n"


def test_announcements_go_above_the_live_display(clock, monkeypatch, tmp_path):
    display = use(monkeypatch, live_display(clock))
    with display.shown():
        display.begin_stage("data")
        announce("12 rows have no answer")
    assert "12 rows have no answer\n" in printed(display)


def test_terminal_is_restored_after_an_error(clock):
    display = live_display(clock)
    with pytest.raises(KeyboardInterrupt), display.shown():
        display.begin_stage("data")
        raise KeyboardInterrupt
    text = printed(display)
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is hidden"
    assert "✓" not in text, "an interrupted stage is no finished one"


def test_terminal_is_restored_before_a_process_that_ends_at_once(clock, monkeypatch):
    from gradfiltering.distributed import process_group

    display = live_display(clock)
    with display.shown():
        (mend_terminal,) = process_group._exit_calls
        mend_terminal()
        text = printed(display)
        assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert process_group._exit_calls == []


def test_finished_stage_leaves_a_line(clock):
    display = live_display(clock)
    with display.shown():
        display.begin_stage("data")
        clock.now += 12
        display.stage_reused = True
        display.begin_stage("report")
        clock.now += 90
    lines = Console(file=io.StringIO()).render_str(printed(display)).plain
    assert "reading the rows" in lines and " · 12 s, from the cache" in lines and " · 90 s" in lines


def test_without_a_terminal_there_are_no_control_characters(capsys):
    with run_display() as display:
        assert isinstance(display, PlainDisplay)
        display.begin_stage("data")
        list(track(range(5), "reading"))
    assert capsys.readouterr().out == "reading the rows\n"


@pytest.mark.parametrize("variable", ["LOCAL_RANK", "NODE_RANK"])
def test_other_ranks_show_nothing(variable, monkeypatch, capsys):
    monkeypatch.setenv(variable, "1")
    with run_display() as display:
        display.begin_stage("data")
        list(track(range(5), "reading"))
    assert capsys.readouterr().out == ""


def test_work_outside_of_a_run_shows_its_bar_by_itself(capsys):
    assert list(track("abc", "judging")) == ["a", "b", "c"]
    assert progress._current_display is None and capsys.readouterr().out == ""


def test_a_display_within_another_is_the_outer_one():
    with run_display() as outer, run_display() as inner:
        assert inner is outer is current_display()
    assert current_display() is not outer


def test_progress_module_is_light():
    heavy_modules = "torch|lightning|transformers|rich.live|rich.progress"
    program = (
        "import sys, re, gradfiltering.runs.progress; "
        f"print(*(name for name in sys.modules if re.fullmatch({heavy_modules!r}, name)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
