"""Speeds measured on this machine, kept in the cache: a later run of the same kind plans at once."""

import json
import logging
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradfiltering.data.examples import Examples
from gradfiltering.errors import UserError
from gradfiltering.runs.cache import Cache
from gradfiltering.runs.logs import announce
from gradfiltering.runs.progress import progress_bar

CALIBRATION_VERSION = 4  # raise it when the same work would be timed otherwise
CALIBRATIONS = "calibrations"  # kind of result
CALIBRATION_FILE = "calibration.json"

logger = logging.getLogger(__name__)


@dataclass
class StoredCalibration:
    """Measurements of speed by what they depend on: machine, threads, packages, shapes and settings.

    Attributes:
        cache: of this run and others.
        device: that computes.
        fresh: True to measure anew, and to keep that in the place of what is stored.
        measured_at: when the oldest measurement was made that came from the cache, in seconds since 1970; None where
            all of them were made now.
        seconds: that the measurements made now took.
        is_announced: the user knows that something is timed.
    """

    cache: Cache
    device: torch.device
    fresh: bool = False
    measured_at: float | None = None
    seconds: float = 0.0
    is_announced: bool = False

    def measure(
        self, work_kind: str, settings: Mapping[str, Any], time_work: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Return a measurement from the cache, or make it and keep it there, where the cache can be written.

        Args:
            work_kind: kind of work that is timed.
            settings: everything beside the machine that its speed depends on, JSON-serialisable.
            time_work: measures; the result is JSON-serialisable.
        """
        key = {
            "code": CALIBRATION_VERSION,
            "work": work_kind,
            **describe_machine(self.device),
            "settings": dict(settings),
        }
        stored = None if self.fresh else self.cache.find(CALIBRATIONS, key)
        if stored is not None:
            content = json.loads((stored.path / CALIBRATION_FILE).read_text("utf-8"))
            self.measured_at = min(self.measured_at or content["measured_at"], content["measured_at"])
            measurement: dict[str, Any] = content["measurement"]
            return measurement
        if not self.is_announced:
            announce("timing a few seconds of the work itself, for the plan of this run")
            self.is_announced = True
        started_at = time.monotonic()
        with progress_bar("timing the work on this machine"):
            measurement = time_work()
        seconds = time.monotonic() - started_at
        self.seconds += seconds
        content = {"measured_at": time.time(), "measurement": measurement}

        def write(folder: Path) -> None:
            (folder / CALIBRATION_FILE).write_text(json.dumps(content), "utf-8")

        try:
            if self.fresh:
                self.cache.delete(CALIBRATIONS, key)
            self.cache.commit(CALIBRATIONS, key, write, seconds=seconds)
        except UserError as error:  # a cache that cannot be written serves all that it holds
            logger.info("the calibration is not kept: %s", error)
        return measurement


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Describe the machine as far as speed depends on it."""
    return {
        "host": platform.node(),
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
    }


def describe_lengths(examples: Examples) -> list[int]:
    """Describe the median and the longest row by the next power of two, so that like rows share a speed."""
    lengths = (float(np.median(examples.lengths)), float(examples.lengths.max()))
    return [int(2 ** np.ceil(np.log2(max(1.0, length)))) for length in lengths]
