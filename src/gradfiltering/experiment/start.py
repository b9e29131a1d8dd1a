"""An open run: its folder, its logger, and what every stage works with."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from lightning.pytorch.loggers import Logger

from gradfiltering.experiment.parts import Experiment
from gradfiltering.reports import experiment_logger as tracking
from gradfiltering.runs.cache import Workspace
from gradfiltering.runs.memory import keep_freed_memory
from gradfiltering.runs.old_run import Run


@contextmanager
def opened(experiment: Experiment) -> Iterator[tuple[Run, Logger, Workspace]]:
    """Start a run in its folder, and close its logger however the run ends."""
    keep_freed_memory()
    run = Run(experiment.run_folder, experiment.build_trainer(logger=False).strategy.root_device)
    run.choices = experiment.choices
    run.start(experiment.config, experiment.seed, experiment.overrides)
    logger = tracking.open_logger(experiment.build_logger, run.config)
    build_trainer = partial(
        experiment.build_trainer,
        logger=logger,
        default_root_dir=run.folder,
        enable_progress_bar=experiment.show_progress,
    )
    try:
        yield run, logger, Workspace(run.folder, experiment.cache, experiment.seed, build_trainer)
    finally:
        tracking.close_logger(logger)
