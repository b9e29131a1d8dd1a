"""Numbers, tables and figures of a run in its experiment loggers."""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger

from gradfiltering.distributed.process_group import rank
from gradfiltering.reports.logger_tables import build_logger_tables, to_markdown, write_csv
from gradfiltering.reports.run_files import RunFiles
from gradfiltering.reports.wandb_logger import RunWandbLogger

logger = logging.getLogger(__name__)

SUMMARY_PARTS = ("data", "proxy", "selection", "diagnostics", "target", "metrics", "pws", "judge_agreement", "cost")
HARMLESS_WARNINGS = (
    ".*in eval mode at the start of training.*",  # dropout is off on purpose
    ".*does not have many workers.*",  # rows are tokenised already
    ".*is_gradient_checkpointing.*",
    ".*`_register_pytree_node` is deprecated.*",
    ".*isinstance\\(treespec, LeafSpec\\).*",
)


def open_loggers(build_loggers: Callable[[], Mapping[str, Logger]], run_config: dict[str, Any]) -> list[Logger]:
    """Build the loggers and log the resolved configuration, free of secrets; only the first process logs."""
    silence_libraries()
    run_loggers: list[Logger] = [*build_loggers().values()] if rank() == 0 else [DummyLogger()]
    for run_logger in run_loggers:
        run_logger.log_hyperparams(run_config)
    return run_loggers


def log_run(run_logger: Logger, run_dir: Path) -> None:
    """Log what a finished run left: numbers, curves from the cache, tables, figures, artifacts.

    W&B takes all of it, TensorBoard all but artifacts, CSV numbers and tables (its figures are in the run folder).
    """
    if isinstance(run_logger, DummyLogger):
        return
    run_files = RunFiles(run_dir)
    _log_reused_curves(run_logger, run_files)
    log_summary(run_logger, run_files.summary)
    if run_files.scores is not None:
        log_histogram(run_logger, "score/histogram", run_files.scores["score"].to_numpy())
    for name, table in build_logger_tables(run_files).items():
        if isinstance(run_logger, RunWandbLogger):
            run_logger.log_frame(name, table)
        elif isinstance(run_logger, TensorBoardLogger):
            run_logger.experiment.add_text(name, to_markdown(table))
        elif isinstance(run_logger, CSVLogger):
            write_csv(table, Path(run_logger.log_dir) / f"{name}.csv")
    for path in sorted(run_dir.glob("figures/*.png")):
        if isinstance(run_logger, RunWandbLogger):
            run_logger.log_figure(f"figures/{path.stem}", path)
        elif isinstance(run_logger, TensorBoardLogger):
            run_logger.experiment.add_image(f"figures/{path.stem}", _read_pixels(path), dataformats="HWC")
    if isinstance(run_logger, RunWandbLogger):
        run_logger.log_artifacts(run_files)


def log_summary(run_logger: Logger, run_summary: Mapping[str, Any]) -> None:
    """Log the numbers of the summary: `diagnostics/…`, `target/…`, `metrics/…`, `pws/…`, `cost/…`."""
    for part in SUMMARY_PARTS:
        summary_numbers = dict(_flatten_numbers(part, run_summary.get(part, {})))
        if summary_numbers:
            run_logger.log_metrics(summary_numbers)


def log_histogram(run_logger: Logger, name: str, values: np.ndarray) -> None:
    """Log a histogram where the logger can draw it; the numbers themselves are in the run folder."""
    finite_values = values[np.isfinite(values)]
    if isinstance(run_logger, WandbLogger):
        import wandb

        run_logger.experiment.log({name: wandb.Histogram(finite_values.tolist())})
    elif isinstance(run_logger, TensorBoardLogger):
        run_logger.experiment.add_histogram(name, finite_values)


def close_logger(run_logger: Logger) -> None:
    """Close the run, so that the next job of a sweep opens its own; after an error it is marked as failed."""
    failed = sys.exc_info()[0] is not None
    try:
        if isinstance(run_logger, WandbLogger):
            import wandb

            wandb.finish(exit_code=int(failed))
            _tell_where_to_sync_from(run_logger)
        else:
            run_logger.finalize("failed" if failed else "success")
    except Exception:
        if not failed:  # else it must not hide why the run ended
            raise
        logger.warning("the experiment logger cannot be closed", exc_info=True)


def _tell_where_to_sync_from(run_logger: WandbLogger) -> None:
    """Write the command that uploads an offline run to the log of the run."""
    offline_folders = sorted(Path(str(run_logger.save_dir)).glob("wandb/offline-run-*"))
    if offline_folders:
        logger.info("logged offline; to upload it: wandb sync %s", " ".join(map(str, offline_folders)))


def silence_libraries() -> None:
    """Keep libraries from printing over the progress of a run; errors and warnings stay."""
    import datasets
    import transformers

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    for message in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message)


def _log_reused_curves(run_logger: Logger, run_files: RunFiles) -> None:
    """Log the curve of each model that was in the cache; the others were logged while they were trained."""
    for model, target_result in run_files.target_results.items():
        if target_result.get("reused") and model in run_files.curves:
            losses = run_files.curves[model].set_index("step")[["train_loss", "heldout_loss"]]
            for step, row in losses.dropna(how="all").iterrows():
                measured = {f"target/{model}/{name}": float(value) for name, value in row.dropna().items()}
                run_logger.log_metrics(measured, step=int(float(str(step))))


def _read_pixels(path: Path) -> np.ndarray:
    """Read a picture over white: [H, W, 3] uint8."""
    from PIL import Image

    picture = Image.open(path).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB"))


def _flatten_numbers(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten_numbers(f"{prefix}/{key}", value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}/{key}", value
