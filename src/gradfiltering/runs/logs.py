"""The log file of a run, and the few lines that pass it by to the screen."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from gradfiltering.distributed.process_group import rank
from gradfiltering.errors import STACK_TRACE_NOTE, UserError
from gradfiltering.masking import mask_text
from gradfiltering.runs.files import delete_symbolic_link, explain_failed_writes
from gradfiltering.runs.plain_text import replace_lone_surrogates
from gradfiltering.runs.progress import current_console, new_console

if TYPE_CHECKING:
    from rich.console import Console

LOG_FILE = "run.log"  # in the run folder
LINE_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LEVELS = ("debug", "info", "warning", "error")

logger = logging.getLogger(__name__)


class _RunLogHandler(logging.FileHandler):
    """Writes the log of a run; where that fails, one line on the screen says so and the run goes on."""

    _has_failed = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; the file is opened by the first."""
        try:
            super().emit(record)
        except OSError:  # of opening the file
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Say once that the log cannot be written, in place of a stack trace for each record."""
        if not self._has_failed:
            self._has_failed = True
            write_error = sys.exc_info()[1]
            screen().print(f"cannot write {self.baseFilename}: {write_error}; lines are missing there", markup=False)

    def close(self) -> None:
        """Close the file; what cannot be written any more must not hide why the run ended."""
        with suppress(OSError):
            super().close()


class _MaskingFormatter(logging.Formatter):
    """Formats a record, its stack trace included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return mask_text(super().format(record))


def screen() -> "Console":
    """Return a console that prints on rank zero only, above a live display; everything but results is logged, too."""
    live_console = current_console()
    if live_console is not None:
        return live_console
    console = new_console()
    console.quiet = rank() > 0
    return console


def announce(message_text: str) -> None:
    """Print one line of progress, and log it."""
    logger.info(message_text)
    screen().print(replace_lone_surrogates(mask_text(message_text)), markup=False)


@contextmanager
def log_to_file(run_folder: Path, level_name: str = "info") -> Iterator[Path]:
    """Write the log of a run to `run.log` in its folder while the block runs.

    An error that no user can mend goes into the log with its stack trace, and carries a note that
    names the file. Ranks other than zero add their warnings and errors to the same file, where
    they see the folder.

    Args:
        run_folder: folder of the run.
        level_name: lowest level of this project's messages; of other libraries only warnings and errors are logged.

    Yields:
        The path of the log file.

    Raises:
        UserError: unknown level.
    """
    if level_name not in LEVELS:
        raise UserError(f"the log level {level_name} is unknown; choose one of: {', '.join(LEVELS)}")
    log_path = run_folder / LOG_FILE
    if rank() == 0:
        with explain_failed_writes(run_folder):
            run_folder.mkdir(parents=True, exist_ok=True)
        delete_symbolic_link(log_path)
    file_handler = (
        _RunLogHandler(log_path, "a", "utf-8", delay=True, errors="backslashreplace")
        if run_folder.is_dir()
        else logging.NullHandler()
    )
    rank_prefix = f"rank {rank()} " if rank() else ""
    file_handler.setFormatter(_MaskingFormatter(rank_prefix + LINE_FORMAT))
    file_handler.setLevel(logging.WARNING if rank() else logging.DEBUG)
    root_logger, project_logger = logging.getLogger(), logging.getLogger("gradfiltering")
    earlier_level = project_logger.level
    root_logger.addHandler(file_handler)
    project_logger.setLevel(level_name.upper())
    logging.captureWarnings(True)
    try:
        yield log_path
    except UserError as user_error:
        logger.error("%s", user_error)
        raise
    except Exception as unexpected_error:
        logger.exception("the run ended by an unexpected error")
        unexpected_error.add_note(f"{STACK_TRACE_NOTE}{log_path}")
        raise
    except (KeyboardInterrupt, SystemExit):  # Lightning makes the second of the first
        logger.warning("the run was stopped", exc_info=True)
        raise
    finally:
        logging.captureWarnings(False)
        project_logger.setLevel(earlier_level)
        root_logger.removeHandler(file_handler)
        file_handler.close()
