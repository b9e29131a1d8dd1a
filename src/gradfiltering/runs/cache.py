"""The cache: finished results by what they depend on, computed once and read by every later run.

A result is a folder named by a digest of its key. It is written under a name that ends in `.part` and renamed into
place, so a folder without that suffix is whole. Several processes of a run need one shared cache folder: rank zero
looks, announces and commits, and all ranks read the same path. A cache that cannot be written serves runs that need
nothing more than it holds.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from gradfiltering.distributed.process_group import rank, run_on_rank_zero
from gradfiltering.errors import UserError, attributed_to
from gradfiltering.options import OptionsError
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
    clear_leftovers,
    discard_folder,
    discard_quietly,
    explain_failed_writes,
    hash_key,
    refuse_address,
    temporary_path,
)
from gradfiltering.runs.logs import announce
from gradfiltering.runs.result_lock import ResultLock
from gradfiltering.runs.shared_folder import check_shared_folder

if TYPE_CHECKING:
    import torch

Arguments = ParamSpec("Arguments")
CacheKey = Mapping[str, Any]
RESUME_KIND = "interrupted"  # folder of what interrupted work would go on from
ROWS_KIND = "interrupted_rows"  # folder of the rows that interrupted work had measured

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedResult:
    """A finished result.

    Attributes:
        path: its folder.
        reused: True if it was in the cache, False if this call made it.
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
        if not isinstance(path, str | Path) or not str(path).strip():
            raise OptionsError(f"path must be a folder, got {path!r}", Cache, ("path",), "the name of a folder", path)
        with attributed_to(self, "path"):
            refuse_address(path)
        self.folder = Path(path)

    def get_or_compute(
        self,
        result_kind: str,
        cache_key: CacheKey,
        compute: Callable[Concatenate[Path, Arguments], object],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> CachedResult:
        """Return the cached result for `cache_key`, or compute it on all ranks together.

        Args:
            result_kind: of the result, such as `base_models`; a folder of the cache.
            cache_key: what the result depends on.
            compute: fills the (existing, empty) folder that it is called with. Each rank has a folder of its own, of
                which only that of rank zero is kept.
            *args, **kwargs: further arguments of `compute`.
        """
        cached_result = self.find(result_kind, cache_key)
        if cached_result is not None:
            return cached_result
        with self.lock(result_kind, cache_key):
            return self.find(result_kind, cache_key) or self._compute(
                result_kind, cache_key, lambda result_folder: compute(result_folder, *args, **kwargs)
            )

    def get_or_compute_on_rank_zero(
        self,
        result_kind: str,
        cache_key: CacheKey,
        compute: Callable[Concatenate[Path, Arguments], object],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> CachedResult:
        """Return the cached result for `cache_key`, or compute it on rank zero while the other ranks wait.

        Args:
            result_kind, cache_key, compute, *args, **kwargs: see `get_or_compute`.
        """
        return run_on_rank_zero(lambda: self.get_or_compute(result_kind, cache_key, compute, *args, **kwargs))

    def find(
        self, result_kind: str, cache_key: CacheKey, checked_files: Sequence[str] | None = None
    ) -> CachedResult | None:
        """Find the cached result for `cache_key`; every rank gets the same answer. A damaged result is none.

        Args:
            result_kind, cache_key: what it is found by.
            checked_files: names of files, the only ones that are checked for damage, and may be read; None for all.
        """
        return run_on_rank_zero(self._find, result_kind, cache_key, checked_files)

    def commit(
        self, result_kind: str, cache_key: CacheKey, write: Callable[[Path], object], seconds: float | None = None
    ) -> CachedResult:
        """Write a result that was computed already; only rank zero writes.

        Args:
            result_kind, cache_key: what it is found by; a result that is there already stays.
            write: fills the (existing, empty) folder that it is given.
            seconds: how long the result took to compute; None to time `write`.
        """

        def commit_locked() -> CachedResult:
            with self.lock(result_kind, cache_key):
                return self._find(result_kind, cache_key) or self._compute(result_kind, cache_key, write, seconds)

        return run_on_rank_zero(commit_locked)

    def delete(self, result_kind: str, cache_key: CacheKey) -> None:
        """Delete a result, if it is there."""
        run_on_rank_zero(discard_folder, self._result_folder(result_kind, cache_key))

    def check_writable(self) -> None:
        """Make sure, before long work, that its result can be stored.

        Raises:
            UserError: the cache cannot be written.
        """

        def write_and_delete() -> None:
            probe_path = temporary_path(self.folder / "probe")
            with explain_failed_writes(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                probe_path.touch()
                probe_path.unlink()

        run_on_rank_zero(write_and_delete)

    def check_shared(self) -> None:
        """Make sure, before any work, that all ranks read the same cache folder, under the same path.

        Raises:
            UserError: some rank sees another folder; every rank raises it.
        """
        check_shared_folder(self.folder, self)

    @contextmanager
    def lock(self, result_kind: str, cache_key: CacheKey) -> Iterator[None]:
        """Hold the making of a result; whoever wants it as well waits, and is told for whom.

        The lock is the operating system's, so it is free again the moment its owner ends, however it ends. The same
        process may hold it several times. Where the cache cannot be written nothing is made, and no lock is needed.
        """
        lock_path = self.folder / "locks" / f"{result_kind}-{hash_key({'stage': result_kind, **cache_key})}.lock"
        with ResultLock(lock_path).held():
            yield

    @contextmanager
    def work_folder(self, result_kind: str) -> Iterator[Path]:
        """Make a folder that all ranks write into while they work on results of a kind; it is deleted in the end."""

        def make_folder() -> Path:
            folder = temporary_path(self.folder / result_kind / "work")
            with explain_failed_writes(folder):
                folder.mkdir(parents=True)
            return folder

        shared_folder = run_on_rank_zero(make_folder)
        try:
            yield shared_folder
        finally:
            if rank() == 0:
                discard_quietly(shared_folder)

    def list_keys(self, result_kind: str) -> list[dict[str, Any]]:
        """List the keys of all results of a kind; every rank gets the same list."""
        return run_on_rank_zero(self._keys, result_kind)

    def resume_point(self, result_kind: str, cache_key: CacheKey) -> "ResumePoint":
        """Return the place of what work on a result would go on from after an interruption."""
        return ResumePoint(self, result_kind, cache_key)

    def resume_points(self, result_kind: str) -> list["ResumePoint"]:
        """List what interrupted work on any result of a kind left."""
        resume_keys = self.list_keys(RESUME_KIND)
        return [
            ResumePoint(self, result_kind, {name: value for name, value in cache_key.items() if name != "kind"})
            for cache_key in resume_keys
            if cache_key.get("kind") == result_kind
        ]

    def _find(
        self, result_kind: str, cache_key: CacheKey, checked_files: Sequence[str] | None = None
    ) -> CachedResult | None:
        result_folder = self._result_folder(result_kind, cache_key)
        try:
            result_record = read_record(result_folder)
        except UserError:
            _report_damage(result_folder / RECORD_FILE)
            return None
        if result_record is None:
            return None
        checksums = {
            name: digest
            for name, digest in result_record["files"].items()
            if checked_files is None or name in checked_files
        }
        damaged_files = find_damaged_files(result_folder, checksums, checksum_once)
        if damaged_files and (result_folder / RECORD_FILE).is_file():  # else it was deleted meanwhile
            _report_damage(result_folder / damaged_files[0])
            return None
        return None if damaged_files else CachedResult(result_folder, reused=True, seconds=result_record["seconds"])

    def _compute(
        self, result_kind: str, cache_key: CacheKey, compute: Callable[[Path], object], seconds: float | None = None
    ) -> CachedResult:
        """Fill a folder on every rank and rename that of rank zero into place."""
        result_folder = self._result_folder(result_kind, cache_key)
        started_at = time.monotonic()

        def make_room() -> None:
            with explain_failed_writes(result_folder):
                discard_folder(result_folder)  # without its record it is no result
                clear_leftovers(result_folder.parent)

        run_on_rank_zero(make_room)
        part_folder = temporary_path(result_folder)
        try:
            with explain_failed_writes(result_folder):
                part_folder.mkdir(parents=True)
                compute(part_folder)

            def rename_into_place() -> CachedResult:
                spent_seconds = time.monotonic() - started_at if seconds is None else seconds
                with explain_failed_writes(result_folder):
                    write_record(part_folder, result_kind, cache_key, spent_seconds)
                    if not result_folder.is_dir():  # else another process made it
                        part_folder.replace(result_folder)
                return CachedResult(result_folder, reused=False, seconds=spent_seconds)

            return run_on_rank_zero(rename_into_place)
        finally:
            discard_quietly(part_folder)

    def _replace(self, result_kind: str, cache_key: CacheKey, write: Callable[[Path], object]) -> None:
        with atomic_path(self._result_folder(result_kind, cache_key)) as part_folder:
            part_folder.mkdir()
            write(part_folder)
            write_record(part_folder, result_kind, cache_key, 0.0)

    def _keys(self, result_kind: str) -> list[dict[str, Any]]:
        result_folders = [path.parent for path in sorted((self.folder / result_kind).glob(f"*/{RECORD_FILE}"))]
        result_records = [
            _read_whole_record(result_folder) for result_folder in result_folders if result_folder.suffix != PART_SUFFIX
        ]
        return [result_record["key"] for result_record in result_records if result_record is not None]

    def _result_folder(self, result_kind: str, cache_key: CacheKey) -> Path:
        return self.folder / result_kind / hash_key({"stage": result_kind, **cache_key})


def _read_whole_record(result_folder: Path) -> dict[str, Any] | None:
    try:
        return read_record(result_folder)
    except UserError:
        _report_damage(result_folder / RECORD_FILE)
        return None


def _report_damage(file_path: Path) -> None:
    """Say that a result is made again, as one of its files is not what was written."""
    announce(f"{damage_error(file_path)}; it is made again")


class ResumePoint:
    """Checkpoints of work on one result; only the last is kept, until the work is done.

    Attributes:
        key: of the result that is worked on.
    """

    def __init__(self, parent_cache: Cache, result_kind: str, cache_key: CacheKey):
        self.key = cache_key
        self._cache = parent_cache
        self._resume_key = {"kind": result_kind, **cache_key}

    def save(self, tensors: Mapping[str, "torch.Tensor"], state: Mapping[str, Any]) -> None:
        """Replace the checkpoint. Rank zero writes; the other ranks may call it or not.

        Args:
            tensors: on any device.
            state: everything else, JSON-serialisable.
        """
        if rank() == 0:
            self._cache._replace(
                RESUME_KIND, self._resume_key, lambda part_folder: write_checkpoint(part_folder, tensors, state)
            )

    def load(self) -> Checkpoint | None:
        """Load the last checkpoint, with tensors on the CPU, on every rank; None where there is none."""
        return run_on_rank_zero(self._load)

    def delete(self) -> None:
        """Delete the checkpoint, if there is one and the cache can be written; the work is done."""
        if rank() == 0:
            discard_quietly(self._cache._result_folder(RESUME_KIND, self._resume_key))
            discard_quietly(self.rows_folder)

    def _load(self) -> Checkpoint | None:
        cached_result = self._cache._find(RESUME_KIND, self._resume_key)
        return None if cached_result is None else read_checkpoint(cached_result.path)

    @property
    def rows_folder(self) -> Path:
        """A folder for files of all ranks that a checkpoint names, deleted with it."""
        return self._cache.folder / ROWS_KIND / self._cache._result_folder(RESUME_KIND, self._resume_key).name
