"""The old face of a run, for the entry point until it has moved to `RunFolder` and `StageRunner`."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from gradfiltering.distributed.process_group import rank
from gradfiltering.runs.environment import peak_memory_bytes, reset_peak_memory
from gradfiltering.runs.run_folder import RunFolder
from gradfiltering.runs.stages import StageRunner


class Run(StageRunner):
    """A run folder and what has been learned so far."""

    def __init__(self, folder: Path, device: torch.device):
        self.folder = Path(folder)
        self.run_folder, self.device = RunFolder(folder), device
        self.config: dict[str, Any] = {}
        self.choices: Mapping[str, str] = {}
        self.summary: dict[str, Any] = {"stages": [], "cost": {}, "diagnostics": {"warnings": []}}

    def start(self, config: Any, seed: int, overrides: Sequence[str] = ()) -> None:
        """Begin the run in its folder."""
        self.config = self.run_folder.begin(config, seed, self.device, overrides)
        self.run_folder.write_summary(self.summary)

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """Announce and time a block as a stage."""
        measured: dict[str, Any] = {"reused": False, "flops": None}
        Console(quiet=rank() > 0).print(f"[bold]stage[/bold] {name}")
        reset_peak_memory(self.device)
        started = time.monotonic()
        yield measured
        seconds = round(time.monotonic() - started, 3)
        self.summary["stages"].append({"name": name, "seconds": seconds, "reused": measured["reused"]})
        peak = peak_memory_bytes(self.device)
        self.summary["cost"][name] = {"seconds": seconds, "flops": measured["flops"], "peak_bytes": peak}
        self.run_folder.write_summary(self.summary)

    def stage_of(self, name: str, work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Run a function as a stage."""
        return self.run(name, work, *arguments, **named)

    def add(self, **parts: Any) -> None:
        """Add parts to the summary."""
        self.add_to_summary(**parts)

    def diagnose(self, found: Any) -> None:
        """Add diagnostics and their warnings."""
        self.add_diagnostics(found.values, found.warnings)

    def warn(self, warnings: list[str]) -> None:
        """Add warnings."""
        self.add_warnings(warnings)
