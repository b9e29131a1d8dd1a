"""The one error a user is meant to read, and how it is shown."""

import errno
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from gradfiltering.interruption import was_stopped
from gradfiltering.masking import mask_text

UNUSABLE_PATH = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG,
}  # fmt: skip
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# How libraries that raise no OSError say that a write failed: safetensors, DuckDB, and torch's archives.
_FULL_WORDS = re.compile(r"os error (28|27|122)\b|No space left on device|PytorchStreamWriter|unexpected pos \d+ vs")
_MEMORY_WORDS = re.compile(
    r"can't allocate memory|not enough memory: you tried to allocate|out of memory", re.IGNORECASE
)
STACK_TRACE_NOTE = "The stack trace is in "


class UserError(ValueError):
    """Something the user can mend: the message names what is wrong, where, and what to change.

    The command line prints it without a stack trace; anything else that is raised is a defect of this project and keeps
    its trace.

    Attributes:
        owner: the options class, or an object of it, whose arguments are to blame.
        arguments: names of these arguments; the command line names their options.
    """

    def __init__(self, message: str = "", owner: object = None, arguments: Sequence[str] = ()):
        super().__init__(message)
        self.owner = owner
        self.arguments = tuple(arguments)


@contextmanager
def attributed_to(owner: object, *arguments: str) -> Iterator[None]:
    """Name the options behind a UserError of the code inside, where nothing nearer to it has."""
    try:
        yield
    except UserError as error:
        if error.owner is None:
            error.owner, error.arguments = owner, arguments
        raise


def is_disk_full(error: BaseException) -> bool:
    """Return True where a write failed for want of space, whichever library was writing."""
    if isinstance(error, OSError):
        return error.errno in DISK_FULL
    return type(error).__name__ in ("SafetensorError", "RuntimeError", "IOException") and bool(
        _FULL_WORDS.search(str(error))
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Return True where memory ran out, on the host or on the device."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and bool(_MEMORY_WORDS.search(str(error)))  # torch.OutOfMemoryError is one
    )


def explained(error: BaseException) -> UserError | None:
    """Put a lack of memory or disk space, or an unusable path, into plain words; None where no user can mend it."""
    if isinstance(error, UserError):
        return error
    first_line = _first_line(error)
    if is_out_of_memory(error):
        return UserError(
            f"memory ran out: {first_line}. Lower batch.tokens, target.tuning.micro_batch_tokens or "
            "generation.batch_size (no training result depends on them), or ensemble.m, set "
            "target.tuning.gradient_checkpointing=true, or choose a smaller proxy or target"
        )
    if is_disk_full(error):
        return UserError(
            f"the disk is full: {first_line}. Free some space, or place the run elsewhere with run_dir=, "
            "the cache with cache.path= and the cache of read files with the environment variable HF_DATASETS_CACHE"
        )
    if isinstance(error, OSError) and error.errno in UNUSABLE_PATH and error.filename is not None:
        return UserError(
            f"{error.filename} cannot be used: {error.strerror}. Look at what stands there and at its permissions, or "
            "place the run elsewhere with run_dir= and the cache with cache.path="
        )
    return None


def _first_line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).splitlines()[:1])[:300]


def _write_trace(error: BaseException) -> str:
    """Write the stack trace of an error outside of any run into a file of its own; return its path."""
    descriptor, trace_path = tempfile.mkstemp(prefix="gradfiltering-", suffix=".log")
    with os.fdopen(descriptor, "w", encoding="utf-8") as trace_file:
        trace_file.write(mask_text("".join(traceback.format_exception(error))))
    return trace_path


@contextmanager
def plain_words(debug: bool = False) -> Iterator[None]:
    """Print an error in one line and exit with 1; with `debug` show its stack trace, without secrets.

    An unexpected error keeps its stack trace in the run's log, which its note names, or else in a file of its own.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what a terminal cannot show must not end a run
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except Exception as error:
        if was_stopped():  # whatever a library made of the signal
            raise KeyboardInterrupt from error
        user_error = None if debug else explained(error)
        log_notes = [note for note in getattr(error, "__notes__", ()) if note.startswith(STACK_TRACE_NOTE)]
        if user_error is None and not debug:
            trace_note = log_notes[0] if log_notes else f"{STACK_TRACE_NOTE}{_write_trace(error)}"
            user_error = UserError(f"unexpected {type(error).__name__}: {_first_line(error)}. {trace_note}")
        if user_error is None:  # shown here, as whoever else shows it knows of no secrets
            print(mask_text("".join(traceback.format_exception(error))), file=sys.stderr, end="")
            sys.exit(1)
        from rich.console import Console
        from rich.text import Text

        Console(stderr=True).print(Text.assemble(("error  ", "bold red"), mask_text(str(user_error))), soft_wrap=True)
        sys.exit(1)
