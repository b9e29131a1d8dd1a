"""Numbers and figures of a run in its experiment logger."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger

from gradfiltering.distributed.process_group import rank
from gradfiltering.reports.logger_tables import extracts, markdown, read_curve, write_csv
from gradfiltering.reports.page.figures import FIGURES
from gradfiltering.reports.wandb_run import WandbRun


def log_numbers(logger: Logger, prefix: str, values: Mapping[str, Any]) -> None:
    """Logs every number of a nested mapping under `prefix/path/to/it`."""
    numbers = dict(_numbers(prefix, values))
    if numbers:
        logger.log_metrics(numbers)


def log_histogram(logger: Logger, name: str, values: np.ndarray) -> None:
    """Logs a histogram where the logger can draw one; the numbers themselves are in the run folder."""
    finite = values[np.isfinite(values)]
    if isinstance(logger, WandbLogger):
        import wandb

        logger.experiment.log({name: wandb.Histogram(finite.tolist())})
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_histogram(name, finite)


def open_logger(build: Callable[[], Logger], config: dict[str, Any]) -> Logger:
    """Quietens the libraries, builds the logger and logs the resolved configuration (already free of secrets).

    Only the first process logs.
    """
    quieten()
    logger = build() if rank() == 0 else DummyLogger()
    logger.log_hyperparams(config)
    return logger


def log_run(logger: Logger, run_dir: Path, summary: Mapping[str, Any]) -> None:
    """Logs what a finished run left: numbers, curves that came from the store, tables, figures, artifacts.

    Only the first process logs. W&B takes all of it, TensorBoard all but artifacts, CSV numbers and tables (its figures
    are the files in the run folder).

    Args:
        logger: the run's.
        run_dir: the run folder.
        summary: the run's.
    """
    if isinstance(logger, DummyLogger):
        return
    _log_reused_curves(logger, run_dir, summary)
    log_summary(logger, summary)
    if (run_dir / "scores.parquet").is_file():
        scores = pq.read_table(run_dir / "scores.parquet", columns=["score"])["score"]
        log_histogram(logger, "score/histogram", scores.to_numpy())
    for table in extracts(run_dir, summary):
        if isinstance(logger, WandbRun):
            logger.log_extract(table)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(table.name, markdown(table))
        elif isinstance(logger, CSVLogger):
            write_csv(table, Path(logger.log_dir) / f"{table.name}.csv")
    for path in sorted((run_dir / FIGURES).glob("*.png")):
        if isinstance(logger, WandbRun):
            logger.log_figure(f"figures/{path.stem}", path)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(f"figures/{path.stem}", _pixels(path), dataformats="HWC")
    if isinstance(logger, WandbRun):
        logger.log_files(summary)


def log_summary(logger: Logger, summary: Mapping[str, Any]) -> None:
    """Logs the numbers of the summary: `diagnostics/…`, `target/…`, `metrics/…`, `pws/…`, `cost/…`."""
    for part in ("data", "proxy", "selection", "diagnostics", "target", "metrics", "pws", "cost"):
        if part in summary:
            log_numbers(logger, part, summary[part])


def _log_reused_curves(logger: Logger, run_dir: Path, summary: Mapping[str, Any]) -> None:
    """The curve of each model that was found in the store; the others were logged while they were trained."""
    for name, result in summary.get("target", {}).items():
        path = run_dir / "target" / name / "curve.csv"
        if result.get("reused") and path.is_file():
            for row in read_curve(path):
                measured = {
                    f"target/{name}/{key}": value
                    for key in ("train_loss", "heldout_loss")
                    if (value := row.get(key)) is not None
                }
                if measured:
                    logger.log_metrics(measured, step=int(row["step"] or 0))


def _pixels(path: Path) -> np.ndarray:
    """[H, W, 3] uint8: a picture over white."""
    from matplotlib.image import imread

    seen = imread(path)  # [H, W, 3 or 4] float in [0, 1]
    opaque = seen[..., 3:] if seen.shape[-1] == 4 else np.ones_like(seen[..., :1])
    return np.round((seen[..., :3] * opaque + 1 - opaque) * 255).astype(np.uint8)


def close_logger(logger: Logger) -> None:
    """Closes the run, so that the next job of a sweep opens its own; one that ends in an error is marked as failed."""
    failed = sys.exc_info()[0] is not None
    if isinstance(logger, WandbLogger):
        import wandb

        wandb.finish(exit_code=int(failed))
    else:
        logger.finalize("failed" if failed else "success")


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
