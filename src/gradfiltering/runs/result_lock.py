"""A lock file that names its owner to those who wait."""

import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from gradfiltering.distributed.process_group import run_on_rank_zero
from gradfiltering.errors import UserError
from gradfiltering.runs.files import NOT_PERMITTED, explain_failed_writes, write_json
from gradfiltering.runs.logs import announce

logger = logging.getLogger(__name__)


class ResultLock:
    """A lock file that names its owner to those who wait."""

    def __init__(self, lock_path: Path):
        self.lock_path = lock_path
        self.owner_path = lock_path.with_suffix(".owner")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock on rank zero while the block runs on all ranks."""
        acquired_locks: list[FileLock] = []
        run_on_rank_zero(lambda: acquired_locks.extend(self._acquire()))
        try:
            yield
        finally:
            for file_lock in acquired_locks:
                self._release(file_lock)

    def _acquire(self) -> list[FileLock]:
        """Acquire the lock, after waiting for it; no lock where the folder cannot be written."""
        file_lock = FileLock(self.lock_path, timeout=0, is_singleton=True)
        try:
            with explain_failed_writes(self.lock_path):
                self.lock_path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    file_lock.acquire()
                except Timeout:
                    announce(f"waiting for {self._describe_owner()}, which makes {self.lock_path.stem}")
                    file_lock.acquire(timeout=-1)
                try:
                    write_json(self.owner_path, {"host": platform.node(), "process": os.getpid(), "since": time.time()})
                except BaseException:
                    file_lock.release()
                    raise
        except UserError as write_error:
            system_error = write_error.__cause__
            if isinstance(system_error, OSError) and system_error.errno in NOT_PERMITTED:
                logger.info("no lock %s: %s", self.lock_path, system_error)
                return []
            raise
        return [file_lock]

    def _release(self, file_lock: FileLock) -> None:
        if file_lock.lock_counter == 1:
            with suppress(OSError):  # only those who wait would read it
                self.owner_path.unlink(missing_ok=True)
        file_lock.release()

    def _describe_owner(self) -> str:
        try:
            lock_owner = json.loads(self.owner_path.read_text("utf-8"))
        except (OSError, ValueError):
            return "another process"
        minutes_held = (time.time() - lock_owner["since"]) / 60
        return f"process {lock_owner['process']} on {lock_owner['host']} (since {minutes_held:.0f} min)"
