"""The lock on a run folder, so that two runs do not write into it at once."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from gradfiltering.distributed.process_group import run_on_rank_zero
from gradfiltering.errors import UserError
from gradfiltering.runs.files import delete_symbolic_link, explain_failed_writes, refuse_address

LOCK_FILE = ".run.lock"  # of the run folder, gone when the run ends


@contextmanager
def hold_run_folder(run_folder: Path) -> Iterator[None]:
    """Keep other runs out of a run folder while the block runs.

    The lock is the operating system's: a run that is killed holds it no longer.

    Raises:
        UserError: another run is writing into the folder, it cannot be written, or is an address of another machine.
    """
    held_locks: list[FileLock] = []
    run_on_rank_zero(lambda: held_locks.append(_acquire(run_folder)))
    try:
        yield
    finally:
        for file_lock in held_locks:
            with suppress(OSError):  # a lock file that stays locks nothing, and must not hide why the run ended
                Path(file_lock.lock_file).unlink(missing_ok=True)
            file_lock.release()


def _acquire(run_folder: Path) -> FileLock:
    refuse_address(run_folder)
    file_lock = FileLock(run_folder / LOCK_FILE, timeout=0)
    with explain_failed_writes(run_folder):
        if run_folder.exists() and not run_folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        run_folder.mkdir(parents=True, exist_ok=True)
        delete_symbolic_link(run_folder / LOCK_FILE)
        try:
            file_lock.acquire()
        except Timeout as error:
            raise UserError(
                f"another run is writing into {run_folder}; wait until it ends, or give this run a folder of its own"
            ) from error
    return file_lock
