"""An open run: its folder, its stages and its loggers."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gradfiltering.distributed.process_group import find_device, run_on_rank_zero
from gradfiltering.experiment.parts import Experiment
from gradfiltering.runs.logs import log_to_file
from gradfiltering.runs.memory import keep_freed_memory, limit_kept_programs
from gradfiltering.runs.run_folder import RunFolder
from gradfiltering.runs.run_lock import hold_run_folder
from gradfiltering.runs.stages import StageRunner

if TYPE_CHECKING:
    import lightning as L
    import torch
    from lightning.pytorch.loggers import Logger


class OpenRun:
    """A run that has begun.

    Args:
        experiment: its parts.
        folder: the run folder.
        masked_config: the resolved configuration without secrets, for the loggers.
        device: of the run's trainers.

    Attributes:
        stages: runs the stages and writes the summary.
    """

    def __init__(
        self, experiment: Experiment, folder: RunFolder, masked_config: dict[str, Any], device: "torch.device"
    ):
        self.experiment = experiment
        self.folder = folder
        self.masked_config = masked_config
        self.device = device
        self.stages = StageRunner(folder, device)

    @cached_property
    def loggers(self) -> "list[Logger]":
        """The experiment loggers, opened when they are first needed: their libraries take seconds to load."""
        from gradfiltering.reports.experiment_logger import open_loggers

        return open_loggers(self.experiment.build_loggers, self.masked_config)

    def build_trainer(self, **trainer_options: Any) -> "L.Trainer":
        """Build a `lightning.Trainer` with these loggers, of a plan alone with none, from further keyword arguments."""
        return self.experiment.build_trainer(
            logger=False if self.experiment.planning.only else self.loggers,
            default_root_dir=self.folder.path,
            enable_progress_bar=False,  # the run's own display shows what goes on
            **trainer_options,
        )

    def close(self) -> None:
        """Close the loggers, where they were opened."""
        if "loggers" in vars(self):
            from gradfiltering.reports.experiment_logger import close_logger

            with ExitStack() as closing:  # all of them, whatever one raises
                for run_logger in self.loggers:
                    closing.callback(close_logger, run_logger)


@contextmanager
def open_run(experiment: Experiment) -> Iterator[OpenRun]:
    """Begin a run in its folder; close its log and its loggers however the run ends."""
    import datasets
    import torch

    datasets.disable_progress_bars()
    keep_freed_memory()
    limit_kept_programs()
    experiment.cache.check_shared()
    device = torch.device("cpu") if experiment.runs_on_one_cpu else find_device(experiment.build_trainer)
    # cuDNN's attention makes a plan for each shape of a batch, which takes longer than many batches do.
    torch.backends.cuda.enable_cudnn_sdp(False)
    folder = RunFolder(run_on_rank_zero(lambda: experiment.run_folder))
    with hold_run_folder(folder.path):
        masked_config = folder.begin(experiment.config, experiment.seed, device, experiment.overrides)
        with log_to_file(folder.path, str(experiment.config["log_level"])):
            run = OpenRun(experiment, folder, masked_config, device)
            try:
                yield run
            finally:
                run.close()
