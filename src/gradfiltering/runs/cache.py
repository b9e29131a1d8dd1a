"""The cache: finished results by what they depend on, computed once and read by every later run.

A result is a folder named by a digest of its key. It is written under a name that ends in `.part` and renamed into
place, so a folder without that suffix is whole. Several processes of a run need one shared cache folder: rank zero
looks, announces and commits, and all ranks read the same path.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from filelock import FileLock, Timeout

from gradfiltering.distributed.process_group import rank, run_on_rank_zero
from gradfiltering.runs.cache_record import (
    RECORD_FILE,
    checksum_once,
    damage_error,
    find_damaged_files,
    read_record,
    write_record,
)
from gradfiltering.runs.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from gradfiltering.runs.files import (
    PART_SUFFIX,
    atomic_path,
    discard_folder,
    explain_failed_writes,
    hash_key,
    temporary_path,
    write_json,
)
from gradfiltering.runs.logs import announce

if TYPE_CHECKING:
    import torch

Arguments = ParamSpec("Arguments")
CacheKey = Mapping[str, Any]
RESUME_KIND = "interrupted"  # folder of what interrupted work would go on from


@dataclass(frozen=True)
class CachedResult:
    """A finished result.

    Attributes:
        path: its folder.
        reused: whether an earlier run made it.
        seconds: how long it took to make.
    """

    path: Path
    reused: bool
    seconds: float


class Cache:
    """Finished results by what they depend on.

    A key is everything that a result depends on, JSON-serialisable, and nothing else. Every method is called by all
    ranks alike, except inside work that rank zero does alone.

    Args:
        path: folder of the cache; made when the first result is.
    """

    def __init__(self, path: Path | str):
        self.folder = Path(path)

    def get_or_compute(
        self,
        kind: str,
        key: CacheKey,
        compute: Callable[Concatenate[Path, Arguments], object],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> CachedResult:
        """Return the cached result for `key`, or compute it on all ranks together.

        Args:
            kind: of the result, such as `base_models`; a folder of the cache.
            key: what the result depends on.
            compute: fills the (existing, empty) folder that it is called with. Each rank has a folder of its own, of
                which only that of rank zero is kept.
            *args, **kwargs: further arguments of `compute`.

        Raises:
            UserError: a file of the cached result is not what was written.
        """
        cached = self.find(kind, key)
        if cached is not None:
            return cached
        with self.lock(kind, key):
            return self.find(kind, key) or self._compute(kind, key, lambda folder: compute(folder, *args, **kwargs))

    def get_or_compute_on_rank_zero(
        self,
        kind: str,
        key: CacheKey,
        compute: Callable[Concatenate[Path, Arguments], object],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> CachedResult:
        """Return the cached result for `key`, or compute it on rank zero while the other ranks wait.

        Args:
            kind, key, compute, *args, **kwargs: see `get_or_compute`.
        """
        return run_on_rank_zero(lambda: self.get_or_compute(kind, key, compute, *args, **kwargs))

    def find(self, kind: str, key: CacheKey) -> CachedResult | None:
        """Find the cached result for `key`; every rank gets the same answer.

        Raises:
            UserError: one of its files is not what was written.
        """
        return run_on_rank_zero(self._find, kind, key)

    def commit(
        self, kind: str, key: CacheKey, write: Callable[[Path], object], seconds: float | None = None
    ) -> CachedResult:
        """Write a result that was computed already; only rank zero writes.

        Args:
            kind, key: what it is found by; a result that is there already stays.
            write: fills the (existing, empty) folder that it is given.
            seconds: how long the result took to compute; None to time `write`.
        """

        def commit_locked() -> CachedResult:
            with self.lock(kind, key):
                return self._find(kind, key) or self._compute(kind, key, write, seconds)

        return run_on_rank_zero(commit_locked)

    def delete(self, kind: str, key: CacheKey) -> None:
        """Delete a result, if it is there."""
        run_on_rank_zero(discard_folder, self._result_folder(kind, key))

    @contextmanager
    def lock(self, kind: str, key: CacheKey) -> Iterator[None]:
        """Hold the making of a result; whoever wants it as well waits, and is told for whom.

        The lock is the operating system's, so it is free again the moment its owner ends, however it ends. The same
        process may hold it several times.
        """
        lock_path = self.folder / "locks" / f"{kind}-{hash_key({'stage': kind, **key})}.lock"
        with _ResultLock(lock_path).held():
            yield

    def resume_point(self, kind: str, key: CacheKey) -> "ResumePoint":
        """Return the place of what work on a result would go on from after an interruption."""
        return ResumePoint(self, kind, key)

    def resume_points(self, kind: str) -> list["ResumePoint"]:
        """List what interrupted work on any result of a kind left."""
        keys = run_on_rank_zero(self._keys, RESUME_KIND)
        return [
            ResumePoint(self, kind, {name: value for name, value in key.items() if name != "kind"})
            for key in keys
            if key.get("kind") == kind
        ]

    def _find(self, kind: str, key: CacheKey) -> CachedResult | None:
        folder = self._result_folder(kind, key)
        record = read_record(folder)
        if record is None:
            return None
        damaged_files = find_damaged_files(folder, record["files"], checksum_once)
        if damaged_files and (folder / RECORD_FILE).is_file():  # else it was deleted meanwhile
            raise damage_error(folder / damaged_files[0])
        return None if damaged_files else CachedResult(folder, reused=True, seconds=record["seconds"])

    def _compute(
        self, kind: str, key: CacheKey, compute: Callable[[Path], object], seconds: float | None = None
    ) -> CachedResult:
        """Fill a folder on every rank and rename that of rank zero into place."""
        folder = self._result_folder(kind, key)
        started = time.monotonic()
        run_on_rank_zero(discard_folder, folder)  # without its record it is no result
        part = temporary_path(folder)
        try:
            with explain_failed_writes(folder):
                part.mkdir(parents=True)
                compute(part)

            def rename_into_place() -> CachedResult:
                spent = time.monotonic() - started if seconds is None else seconds
                with explain_failed_writes(folder):
                    write_record(part, kind, key, spent)
                    if not folder.is_dir():  # else another process made it
                        part.replace(folder)
                return CachedResult(folder, reused=False, seconds=spent)

            return run_on_rank_zero(rename_into_place)
        finally:
            discard_folder(part)

    def _replace(self, kind: str, key: CacheKey, write: Callable[[Path], object]) -> None:
        with atomic_path(self._result_folder(kind, key)) as part:
            part.mkdir()
            write(part)
            write_record(part, kind, key, 0.0)

    def _keys(self, kind: str) -> list[dict[str, Any]]:
        folders = [path.parent for path in sorted((self.folder / kind).glob(f"*/{RECORD_FILE}"))]
        records = [read_record(folder) for folder in folders if folder.suffix != PART_SUFFIX]
        return [record["key"] for record in records if record is not None]

    def _result_folder(self, kind: str, key: CacheKey) -> Path:
        return self.folder / kind / hash_key({"stage": kind, **key})


class ResumePoint:
    """Checkpoints of work on one result; only the last is kept, until the work is done.

    Attributes:
        key: of the result that is worked on.
    """

    def __init__(self, cache: Cache, kind: str, key: CacheKey):
        self.key = key
        self._cache = cache
        self._resume_key = {"kind": kind, **key}

    def save(self, tensors: Mapping[str, "torch.Tensor"], state: Mapping[str, Any]) -> None:
        """Replace the checkpoint. Rank zero writes; the other ranks may call it or not.

        Args:
            tensors: on any device.
            state: everything else, JSON-serialisable.
        """
        if rank() == 0:
            self._cache._replace(RESUME_KIND, self._resume_key, lambda part: write_checkpoint(part, tensors, state))

    def load(self) -> Checkpoint | None:
        """Load the last checkpoint, with tensors on the CPU, on every rank; None where there is none."""
        return run_on_rank_zero(self._load)

    def delete(self) -> None:
        """Delete the checkpoint, if there is one; the work is done."""
        if rank() == 0:
            discard_folder(self._cache._result_folder(RESUME_KIND, self._resume_key))

    def _load(self) -> Checkpoint | None:
        cached = self._cache._find(RESUME_KIND, self._resume_key)
        return None if cached is None else read_checkpoint(cached.path)


@dataclass(frozen=True)
class Workspace:
    """Old bundle of run folder, cache, seed and trainer, for callers that have not moved yet."""

    run_dir: Path
    cache: Cache
    seed: int
    trainer: Callable[..., Any]


class _ResultLock:
    """A lock file that names its owner to those who wait."""

    def __init__(self, lock_path: Path):
        self.lock_path = lock_path
        self.owner_path = lock_path.with_suffix(".owner")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock on rank zero while the block runs on all ranks."""
        acquired_locks: list[FileLock] = []
        run_on_rank_zero(lambda: acquired_locks.append(self._acquire()))
        try:
            yield
        finally:
            for lock in acquired_locks:
                self._release(lock)

    def _acquire(self) -> FileLock:
        with explain_failed_writes(self.lock_path):
            self.lock_path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.lock_path, timeout=0, is_singleton=True)
        try:
            lock.acquire()
        except Timeout:
            announce(f"waiting for {self._describe_owner()}, which makes {self.lock_path.stem}")
            lock.acquire(timeout=-1)
        write_json(self.owner_path, {"host": platform.node(), "process": os.getpid(), "since": time.time()})
        return lock

    def _release(self, lock: FileLock) -> None:
        if lock.lock_counter == 1:
            self.owner_path.unlink(missing_ok=True)
        lock.release()

    def _describe_owner(self) -> str:
        try:
            owner = json.loads(self.owner_path.read_text("utf-8"))
        except (OSError, ValueError):
            return "another process"
        minutes = (time.time() - owner["since"]) / 60
        return f"process {owner['process']} on {owner['host']} (since {minutes:.0f} min)"
