"""The stages of a run: announced, timed, and written into the summary as they end."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from gradfiltering.diagnostics.failures import FailedDiagnostic
from gradfiltering.runs.environment import peak_memory_bytes, reset_peak_memory
from gradfiltering.runs.memory import return_freed_memory
from gradfiltering.runs.progress import current_display
from gradfiltering.runs.run_folder import RunFolder

if TYPE_CHECKING:
    import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class StageRunner:
    """Run the stages of an experiment and write what is known after each into `summary.json`.

    Args:
        run_folder: where the summary is written.
        device: of the run's trainer, whose memory is measured.

    Attributes:
        summary: content of `summary.json`.
    """

    def __init__(self, run_folder: RunFolder, device: "torch.device"):
        self.run_folder = run_folder
        self.device = device
        self.summary: dict[str, Any] = {"stages": [], "cost": {}, "diagnostics": {"warnings": [], "failed": []}}
        self.run_folder.write_summary(self.summary)

    def set_plan(self, stage_names: Sequence[str], planned_seconds: Mapping[str, float]) -> None:
        """Say which stages the run has, so that the screen can count them, and how long they are expected to take.

        Args:
            stage_names: of all stages in their order, ended ones included.
            planned_seconds: stage -> seconds; empty where nothing is known.
        """
        current_display().set_plan(stage_names, planned_seconds)

    def run(
        self, stage_name: str, function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Run a function as a stage; its result may say whether it was `reused` and the `flops` it took.

        Args:
            stage_name: of the stage, on the screen and in the summary.
            function: the work.
            *args, **kwargs: arguments of the function.
        """
        current_display().begin_stage(stage_name)
        logger.info("stage %s begins", stage_name)
        return_freed_memory()  # what the stage before has freed is none of this one's
        reset_peak_memory(self.device)
        started_at = time.monotonic()
        result = function(*args, **kwargs)
        seconds = round(time.monotonic() - started_at, 3)
        reused, flops = getattr(result, "reused", False), getattr(result, "flops", None)
        peak_bytes = peak_memory_bytes(self.device)
        current_display().stage_reused = bool(reused)
        self.summary["stages"].append({"name": stage_name, "seconds": seconds, "reused": reused})
        self.summary["cost"][stage_name] = {"seconds": seconds, "flops": flops, "peak_bytes": peak_bytes}
        logger.info("stage %s took %s s", stage_name, seconds)
        self.run_folder.write_summary(self.summary)
        return result

    def end(self) -> None:
        """Say that no further stage follows."""
        current_display().end_stage()

    def add_to_summary(self, **summary_parts: Any) -> None:
        """Add top-level parts to the summary."""
        self.summary.update(summary_parts)
        self.run_folder.write_summary(self.summary)

    def add_diagnostics(
        self, diagnostic_values: Mapping[str, Any], failed_diagnostics: Sequence[FailedDiagnostic] = ()
    ) -> None:
        """Add diagnostics, and those whose limit is crossed with their warnings."""
        self.summary["diagnostics"].update(diagnostic_values)
        self.summary["diagnostics"]["failed"] += [
            {**asdict(diagnostic), "forbids_use": diagnostic.forbids_use} for diagnostic in failed_diagnostics
        ]
        self.add_warnings([diagnostic.warning for diagnostic in failed_diagnostics])

    def add_warnings(self, warnings: Sequence[str]) -> None:
        """Add warnings, which are shown at the end and kept in the summary."""
        self.summary["diagnostics"]["warnings"] += warnings
        for warning_text in warnings:
            logger.info("warning for the user: %s", warning_text)
        self.run_folder.write_summary(self.summary)
