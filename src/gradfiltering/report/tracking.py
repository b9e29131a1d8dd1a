"""Numbers and figures of a run in its experiment logger."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger

from gradfiltering.proxy.devices import rank


def log_numbers(logger: Logger, prefix: str, values: Mapping[str, Any]) -> None:
    """Logs every number of a nested mapping under `prefix/path/to/it`."""
    numbers = dict(_numbers(prefix, values))
    if numbers:
        logger.log_metrics(numbers)


def log_histogram(logger: Logger, name: str, values: np.ndarray) -> None:
    """Logs a histogram where the logger can draw one; the numbers themselves are in the run folder."""
    if isinstance(logger, WandbLogger):
        import wandb

        logger.experiment.log({name: wandb.Histogram(values[np.isfinite(values)].tolist())})


def open_logger(build: Callable[[], Logger], config: dict[str, Any]) -> Logger:
    """Quietens the libraries, builds the logger and logs the resolved configuration (already free of secrets).

    Only the first process logs.
    """
    quieten()
    logger = build() if rank() == 0 else DummyLogger()
    logger.log_hyperparams(config)
    return logger


def log_summary(logger: Logger, summary: Mapping[str, Any]) -> None:
    """Logs the numbers of the summary: `diagnostics/…`, `target/…`, `metrics/…`, `pws/…`, `cost/…`."""
    for part in ("data", "proxy", "selection", "diagnostics", "target", "metrics", "pws", "cost"):
        if part in summary:
            log_numbers(logger, part, summary[part])


def close_logger(logger: Logger) -> None:
    """Closes the run, so that the next job of a sweep opens its own."""
    if isinstance(logger, WandbLogger):
        import wandb

        wandb.finish()
    else:
        logger.finalize("success")


def quieten() -> None:
    """Keeps libraries from printing over the progress of a run; errors and warnings stay."""
    import datasets
    import transformers

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    for harmless in (
        ".*in eval mode at the start of training.*",  # dropout is off on purpose
        ".*does not have many workers.*",  # rows are tokenised already
        ".*is_gradient_checkpointing.*",
        ".*`_register_pytree_node` is deprecated.*",
        ".*isinstance\\(treespec, LeafSpec\\).*",
    ):
        warnings.filterwarnings("ignore", harmless)


def _numbers(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(f"{prefix}/{key}", value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}/{key}", value
