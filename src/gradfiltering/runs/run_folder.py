"""The run folder: configuration, environment, costs, and `summary.json`."""

import math
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from gradfiltering.distributed.process_group import rank
from gradfiltering.errors import UserError
from gradfiltering.methods.diagnostics import Diagnostics
from gradfiltering.runs.cache import atomic_path, package_versions, write_json

SECRET = re.compile(r"(api_?key|token|password|secret)$", re.IGNORECASE)


OUTPUTS = (
    "gradient_log",
    "gradient_log_heldout",
    "projections",
    "influence",
    "trajectory.parquet",
    "adapters",
    "truth.parquet",
    "scores.parquet",
    "unscored.parquet",
    "subset.*",
    "subset_rows.parquet",
    "selection.parquet",
    "dataset_info.json",
    "README.md",
    "target",
    "responses",
    "verdicts.jsonl",
    "rows.parquet",
    "report.html",
    "figures",
    "summary.json",
)


class Run:
    """A run folder and what has been learned so far.

    Args:
        folder: where everything is written.
        device: the trainer's, which is not always the best the machine has.

    Attributes:
        config: the resolved configuration without secrets.
        choices: which option of each configuration group was taken.
        summary: content of `summary.json`, written after every step, so it is there whatever `until`.
    """

    def __init__(self, folder: Path, device: torch.device):
        self.folder = folder
        self.device = device
        self.config: dict[str, Any] = {}
        self.choices: Mapping[str, str] = {}
        self.summary: dict[str, Any] = {"stages": [], "cost": {}, "diagnostics": {"warnings": []}}

    def start(self, config: Any, seed: int, overrides: Sequence[str] = ()) -> None:
        """Writes `config.yaml` and `environment.json`; an earlier run's outputs in the same folder are removed.

        Args:
            config: the resolved configuration.
            seed: the run's seed.
            overrides: what was asked for on the command line, `key=value` each.

        Raises:
            UserError: the folder holds files of the same names that are no run's.
        """
        self.config = without_secrets(config)
        earlier = [path for name in OUTPUTS for path in self.folder.glob(name)]
        if earlier and not (self.folder / "environment.json").is_file():
            raise UserError(
                f"run_dir={self.folder} holds {earlier[0].name}, which no earlier run made and this one would replace; "
                "give another folder"
            )
        for path in earlier:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        with atomic_path(self.folder / "config.yaml") as part:
            part.write_text(yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True), encoding="utf-8")
        said = [
            f"{key}=***" if SECRET.search(key) else f"{key}={value}"
            for key, _, value in (one.partition("=") for one in overrides)
        ]
        write_json(self.folder / "environment.json", {**environment(seed, self.device), "overrides": said})
        self.write()

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """Announces and times a stage, measures its memory; the block may set `reused` and `flops` in what it gets."""
        measured: dict[str, Any] = {"reused": False, "flops": None}
        Console(quiet=rank() > 0).print(f"[bold]stage[/bold] {name}")
        reset_peak(self.device)
        started = time.monotonic()
        yield measured
        seconds = round(time.monotonic() - started, 3)
        self.summary["stages"].append({"name": name, "seconds": seconds, "reused": measured["reused"]})
        peak = peak_bytes(self.device)
        self.summary["cost"][name] = {"seconds": seconds, "flops": measured["flops"], "peak_bytes": peak}
        self.write()

    def stage_of(self, name: str, work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Does `work` as a stage; its result may say whether it was `reused` and what `flops` it took."""
        with self.stage(name) as measured:
            result = work(*arguments, **named)
            measured.update(reused=getattr(result, "reused", False), flops=getattr(result, "flops", None))
        return result

    def add(self, **parts: Any) -> None:
        """Adds top-level parts to the summary."""
        self.summary.update(parts)
        self.write()

    def diagnose(self, found: Diagnostics) -> None:
        """Adds diagnostics and their warnings."""
        self.summary["diagnostics"].update(found.values)
        self.warn(found.warnings)

    def warn(self, warnings: list[str]) -> None:
        """Adds warnings, shown at the end and kept in the summary."""
        self.summary["diagnostics"]["warnings"] += warnings
        self.write()

    def write(self) -> None:
        """Writes `summary.json`; numbers that are not finite become null."""
        write_json(self.folder / "summary.json", _finite(self.summary))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def environment(seed: int, device: torch.device) -> dict[str, Any]:
    """Package versions, commit, seed, host and device of a run."""
    return {
        "packages": package_versions(),
        "python": platform.python_version(),
        "git_commit": git_commit(),
        "seed": seed,
        "host": platform.node(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def git_commit() -> str | None:
    """The commit this code stands at, with `-dirty` if it was changed; None outside a checkout."""
    here = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def without_secrets(value: Any) -> Any:
    """A copy of a configuration in which values of keys that name a secret are masked."""
    if isinstance(value, dict):
        return {
            key: "***" if entry is not None and SECRET.search(str(key)) else without_secrets(entry)
            for key, entry in value.items()
        }
    if isinstance(value, list):
        return [without_secrets(entry) for entry in value]
    return value


def reset_peak(device: torch.device) -> None:
    """Starts a new measurement of peak memory, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        try:
            clear.write_text("5")
        except OSError:
            return  # some containers forbid it; the peak then is the process's so far


def peak_bytes(device: torch.device) -> int:
    """Peak memory since `reset_peak`: of the GPU if `device` is one, else resident memory of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024
