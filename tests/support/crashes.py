"""Killing train.py at a chosen moment.

What a killed process leaves is what it had done to files by then. So the moments to choose among are its file
operations: each run counts those below a folder, and can be halted before the one with a given number. The test's
process then sends a real SIGKILL. Processes are forked by a server that has imported everything, so they start at once.
"""

import multiprocessing
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.pipeline import ROOT, run_train

OPERATIONS = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "open")
LONG_ENOUGH = 900  # seconds: against hanging only

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["tests.support.crash_imports"])


@dataclass
class Moments:
    """File operations of a process below a folder.

    Attributes:
        folder: absolute.
        log: every operation is noted here, one line each.
        halt_at: number of the operation to wait before, from 0; None to go through.
        halted: set while waiting.
        go_on: ends the waiting.
    """

    folder: Path
    log: Path
    halt_at: int | None
    halted: Any
    go_on: Any

    def watch(self) -> None:
        """Counts from now on, in this process."""
        notes = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        inside, count = f"{self.folder}/", 0

        def seen(event: str, arguments: tuple) -> None:
            nonlocal count
            if event not in OPERATIONS:
                return
            if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
                return
            place = _place(event, arguments)
            if not place.startswith(inside):
                return
            if count == self.halt_at:
                self.halted.set()
                self.go_on.wait()
            count += 1
            os.write(notes, f"{event} {place.removeprefix(inside)}\n".encode())

        sys.addaudithook(seen)


def _place(event: str, arguments: tuple) -> str:
    """The path an operation is about; `shutil.rmtree` gives names within an open folder."""
    place = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else ""
    folder = arguments[1] if event in ("os.remove", "os.rmdir") else -1
    if folder != -1 and not place.startswith("/"):
        place = f"{Path(f'/proc/self/fd/{folder}').readlink()}/{place}"
    return place if place.startswith("/") else str(Path.cwd() / place)


def _train(overrides: list[str], moments: Moments | None, output: Path) -> None:
    for name in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), name)
    os.chdir(ROOT)
    if moments is not None:
        moments.watch()
    run_train(*overrides)


class Training:
    """`python train.py overrides` in a process of its own, started now.

    Args:
        temporary: for its output and the list of its file operations.
        overrides: of train.py.
        folder: file operations below it are counted.
        halt_at: number of the operation to halt before.
    """

    def __init__(self, temporary: Path, overrides: list[str], folder: Path, halt_at: int | None = None):
        temporary.mkdir(parents=True, exist_ok=True)
        self.log, self.output = temporary / "operations.txt", temporary / "output.txt"
        self.halted, self.go_on = _server.Event(), _server.Event()
        moments = Moments(folder, self.log, halt_at, self.halted, self.go_on)
        self.process = _server.Process(target=_train, args=(overrides, moments, self.output))
        self.process.start()

    @property
    def said(self) -> str:
        """What it printed so far."""
        return self.output.read_text("utf-8") if self.output.is_file() else ""

    @property
    def operations(self) -> list[str]:
        """Its file operations so far."""
        return self.log.read_text("utf-8").splitlines()

    def wait_until_halted(self) -> None:
        """Returns when it stands before the chosen operation."""
        assert self.halted.wait(LONG_ENOUGH), f"never got as far:\n{self.said}"

    def kill(self, ended: bool = False) -> None:
        """SIGKILL, which no process can catch; `ended` allows for a run that came to its end before."""
        self.process.kill()
        self.process.join()
        assert self.process.exitcode in ((-9, 0) if ended else (-9,))

    def finish(self) -> None:
        """Lets it go on, waits for its end, which must be a good one."""
        self.go_on.set()
        self.process.join(LONG_ENOUGH)
        if self.process.is_alive():
            self.process.kill()
        assert self.process.exitcode == 0, self.said
