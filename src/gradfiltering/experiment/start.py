"""From configuration to an open run: its folder, its logger, and what every stage works with."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from gradfiltering.config.build import build
from gradfiltering.reports import experiment_logger as tracking
from gradfiltering.runs.cache import Cache, Workspace
from gradfiltering.runs.memory import keep_freed_memory
from gradfiltering.runs.old_run import Run


@contextmanager
def opened(cfg: DictConfig, cache: Cache) -> Iterator[tuple[Run, Logger, Workspace]]:
    """Starts a run in its folder, and closes its logger however the run ends.

    Args:
        cfg: the whole configuration.
        store: finished results of this run and others.
    """
    keep_freed_memory()
    run = Run(Path(cfg.run_dir), build(cfg.trainer)(logger=False).strategy.root_device)
    run.choices = HydraConfig.get().runtime.choices
    options = OmegaConf.to_container(cfg, resolve=True)
    run.start(options, cfg.seed, HydraConfig.get().overrides.task)
    logger = tracking.open_logger(partial(build, cfg.logger), run.config)
    trainer = partial(build(cfg.trainer), logger=logger, default_root_dir=run.folder, enable_progress_bar=cfg.progress)
    try:
        yield run, logger, Workspace(run.folder, cache, cfg.seed, trainer)
    finally:
        tracking.close_logger(logger)
