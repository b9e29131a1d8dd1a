"""Record what a command prints on a terminal of a given width, as a picture and as plain text.

    python scripts/record_screen.py --columns 80 160 --folder shots --name run -- python train.py data.limit=200

The command runs in a pseudo-terminal of its own for each width, so that bars and colours are those that a person sees.
A terminal emulator keeps what stands there at the end, lines that were scrolled away included. `NAME_80.svg` and
`NAME_80.txt` are written. Runs share a cache where the command does.
"""

import argparse
import fcntl
import io
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import pyte
from pyte.screens import Char
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROWS, KEPT_LINES = 50, 2000
COLOURS = {"brown": "yellow"}  # as pyte names what rich calls yellow


def main(command_line: Sequence[str] | None = None) -> None:
    """Run the command once for each width and write its screens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=int, nargs="+", default=[80, 160])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--name", default="screen")
    parser.add_argument("--title", default="gradfiltering")
    parser.add_argument("command", nargs="+", help="after --")
    arguments = parser.parse_args(command_line)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for columns in arguments.columns:
        lines = record(arguments.command, columns)
        target = arguments.folder / f"{arguments.name}_{columns}"
        target.with_suffix(".txt").write_text("".join(f"{line.plain.rstrip()}\n" for line in lines), "utf-8")
        console = Console(width=columns, record=True, file=io.StringIO(), color_system="truecolor")
        for line in lines:
            console.print(line, no_wrap=True, overflow="crop", crop=True)
        console.save_svg(str(target.with_suffix(".svg")), title=arguments.title, theme=MONOKAI)


def record(command: list[str], columns: int) -> list[Text]:
    """Run a command in a terminal and return the lines that it leaves there, colours included.

    Args:
        command: program and arguments.
        columns: width of the terminal in characters.

    Raises:
        subprocess.CalledProcessError: the command failed.
    """
    screen = pyte.HistoryScreen(columns, ROWS, history=KEPT_LINES, ratio=0.5)
    screen.set_mode(pyte.modes.LNM)
    stream = pyte.ByteStream(screen)
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": str(ROWS)}
    process = subprocess.Popen(
        command, stdin=follower, stdout=follower, stderr=follower, env=environment, close_fds=True
    )
    os.close(follower)
    while written := _read(leader):
        stream.feed(written)
    os.close(leader)
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, command)
    kept_rows = [*screen.history.top, *(screen.buffer[row] for row in range(screen.lines))]
    lines = [_line([row[column] for column in range(columns)]) for row in kept_rows]
    while lines and not lines[-1].plain.strip():
        lines.pop()
    return lines


def _read(descriptor: int) -> bytes:
    """Read what the terminal has to give; nothing once the command has closed it."""
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""


def _line(characters: list[Char]) -> Text:
    line = Text()
    for style, alike in groupby(characters, _style):
        line.append("".join(character.data for character in alike), style)
    line.rstrip()
    return line


def _style(character: Char) -> Style:
    return Style(
        color=_colour(character.fg),
        bgcolor=_colour(character.bg),
        bold=character.bold,
        italic=character.italics,
        underline=character.underscore,
        reverse=character.reverse,
    )


def _colour(name: str) -> str | None:
    if name == "default":
        return None
    if len(name) == 6 and all(digit in "0123456789abcdef" for digit in name.lower()):
        return f"#{name}"
    name = COLOURS.get(name, name)
    return f"bright_{name.removeprefix('bright')}" if name.startswith("bright") else name


if __name__ == "__main__":
    main()
