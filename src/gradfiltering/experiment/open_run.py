"""An open run: its folder, its stages and its logger."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import lightning as L
import torch
from lightning.pytorch.loggers import Logger

from gradfiltering.distributed.process_group import run_on_rank_zero, try_trainer
from gradfiltering.experiment.parts import Experiment
from gradfiltering.reports.experiment_logger import close_logger, open_logger
from gradfiltering.runs.logs import log_to_file
from gradfiltering.runs.memory import keep_freed_memory
from gradfiltering.runs.run_folder import RunFolder
from gradfiltering.runs.run_lock import hold_run_folder
from gradfiltering.runs.stages import StageRunner


@dataclass(frozen=True)
class OpenRun:
    """A run that has begun.

    Attributes:
        folder: the run folder.
        stages: runs the stages and writes the summary.
        logger: the experiment logger.
        build_trainer: builds a `lightning.Trainer` with this logger.
        device: of the run's trainers.
    """

    folder: RunFolder
    stages: StageRunner
    logger: Logger
    build_trainer: Callable[..., L.Trainer]
    device: torch.device


@contextmanager
def open_run(experiment: Experiment) -> Iterator[OpenRun]:
    """Begin a run in its folder; close its log and its logger however the run ends."""
    keep_freed_memory()
    device = try_trainer(experiment.build_trainer).strategy.root_device
    folder = RunFolder(run_on_rank_zero(lambda: experiment.run_folder))
    with hold_run_folder(folder.path):
        masked_config = folder.begin(experiment.config, experiment.seed, device, experiment.overrides)
        with log_to_file(folder.path, str(experiment.config["log_level"])):
            logger = open_logger(experiment.build_logger, masked_config)
            build_trainer = partial(
                experiment.build_trainer,
                logger=logger,
                default_root_dir=folder.path,
                enable_progress_bar=False,  # the run's own display shows it
            )
            try:
                yield OpenRun(folder, StageRunner(folder, device), logger, build_trainer, device)
            finally:
                close_logger(logger)
