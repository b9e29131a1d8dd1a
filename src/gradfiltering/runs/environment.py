"""The machine a run was made on, and the memory it takes there."""

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradfiltering.runs.cache_record import package_versions

if TYPE_CHECKING:
    import torch


def describe_environment(seed: int, device: "torch.device") -> dict[str, Any]:
    """Describe package versions, commit, seed, host and device of a run."""
    import torch

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
    """Return the commit this code stands at, with `-dirty` if it was changed; None outside a checkout."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def reset_peak_memory(device: "torch.device") -> None:
    """Start a new measurement of peak memory, where the system allows it."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    clear_path = Path("/proc/self/clear_refs")
    if clear_path.exists():
        try:
            clear_path.write_text("5")
        except OSError:
            return  # some containers forbid it; the peak then is the process's so far


def peak_memory_bytes(device: "torch.device") -> int:
    """Return peak memory since `reset_peak_memory`: of the GPU if `device` is one, else resident memory."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    status_path = Path("/proc/self/status")
    if status_path.exists():
        high_water_mark = re.search(r"VmHWM:\s+(\d+) kB", status_path.read_text())
        if high_water_mark:
            return int(high_water_mark[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024
