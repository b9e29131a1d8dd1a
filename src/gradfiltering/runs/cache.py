"""Where a stage's result lives and what it was made from.

A result is a folder named by a fingerprint of everything it depends on. It is written to `*.part` and renamed into
place, so a folder without the suffix is whole. `artifact.json` beside the result says what made it, and holds a
checksum of each file, which is compared before a process uses a result for the first time.
"""

import errno
import hashlib
import json
import os
import platform
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gradfiltering.errors import UserError, is_disk_full

WRITE_FAILURES = {
    errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG
}  # fmt: skip
RECORD, CHECKSUM = "artifact.json", "checksum"
PART = ".part"  # a name that ends so is being written or deleted, or was when its process was killed
RECORDED_PACKAGES = ("torch", "lightning", "transformers", "peft", "datasets", "torchmetrics", "numpy", "pyarrow")


def hash_key(value: Any) -> str:
    """Hex digest (32 characters) of a JSON-serialisable value; the order of mapping keys does not matter."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@cache
def _package_versions() -> dict[str, str]:
    return {name: version(name) for name in RECORDED_PACKAGES}


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide a result's bits."""
    return dict(_package_versions())


def files_of(folder: Path) -> list[str]:
    """Names of a result's own files, relative to its folder."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path.relative_to(folder).as_posix() for path in found if path.name != RECORD]


def file_checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_record(folder: Path) -> dict[str, Any] | None:
    """What the record of a result says; None where there is none, or one of a version that kept no checksum of it.

    Raises:
        UserError: the record is not what was written.
    """
    file = folder / RECORD
    try:
        about = json.loads(file.read_bytes())
        kept = about.pop(CHECKSUM, None)
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError):
        raise _damaged(file) from None
    if kept is None:
        return None
    if kept != hash_key(about):
        raise _damaged(file)
    return about


def damaged_files(folder: Path, files: Mapping[str, str], of: Callable[[Path], str] = file_checksum) -> list[str]:
    """Names of the files that are gone, or are not what they were when `files` (name -> checksum) was recorded."""
    there = set(files_of(folder))
    return sorted(name for name, kept in files.items() if name not in there or of(folder / name) != kept)


def _checksum_once(path: Path) -> str:
    """Checksum of a file, computed once a process as long as nobody writes to the file."""
    about = path.stat()
    return _known_checksum(path, about.st_ino, about.st_size, about.st_mtime_ns)


@cache
def _known_checksum(path: Path, *state: int) -> str:
    return file_checksum(path)


def _damaged(file: Path) -> UserError:
    return UserError(
        f"{file} is not what was written there: the disk is failing, or somebody changed the file (a run folder may "
        f"link to it). Delete {_result_of(file)} to make it anew; `gradfiltering cache verify` finds more"
    )


def _result_of(file: Path) -> Path:
    return next((folder for folder in file.parents if (folder / RECORD).is_file()), file.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Explains a write that fails; other errors of the system (a file not found, no network) pass as they are.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    try:
        yield
    except Exception as error:
        if not is_disk_full(error) and not (isinstance(error, OSError) and error.errno in WRITE_FAILURES):
            raise
        why = (error.strerror if isinstance(error, OSError) else None) or error
        raise UserError(
            f"cannot write {path}: {why}. Free some space or permit writing there, "
            "or place the run elsewhere with run_dir=, the store with cache.path= and the cache of read files with the "
            "environment variable HF_DATASETS_CACHE"
        ) from error


def part_of(path: Path) -> Path:
    """A name beside `path` that nobody else uses, and nobody reads."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{PART}")


def discard(folder: Path) -> None:
    """Deletes a folder that others may look at; it is gone at once, not file by file."""
    part = part_of(folder)
    try:
        folder.rename(part)
    except FileNotFoundError:
        return
    shutil.rmtree(part, ignore_errors=True)


@contextmanager
def atomic_path(path: Path, keep_existing: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path` (file or folder) and renames it into place when the block succeeds.

    Args:
        path: where the result will stand.
        keep_existing: leave a folder that is there by then as it is; another process made it and may be reading it.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    part = part_of(path)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            if path.is_dir() and keep_existing:
                return
            if path.is_dir():
                discard(path)
            part.replace(path)
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented UTF-8 JSON, whole or not at all."""
    with atomic_path(path) as part:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class CachedResult:
    """A finished result: its folder, whether an earlier run had made it, and the seconds its making took."""

    path: Path
    reused: bool
    seconds: float


class Cache:
    """Finished results by what they depend on.

    Args:
        path: folder of the store; made when the first result is.
    """

    def __init__(self, path: Path | str):
        self.root = Path(path)

    def find(self, stage: str, key: Mapping[str, Any]) -> CachedResult | None:
        """The stored result for `key`, if there is one.

        Raises:
            UserError: one of its files is not what was written.
        """
        path = self._path(stage, key)
        about = read_record(path)
        if about is None:
            return None
        bad = damaged_files(path, about["files"], _checksum_once)
        if bad and (path / RECORD).is_file():  # else it was deleted meanwhile
            raise _damaged(path / bad[0])
        if bad:
            return None
        return CachedResult(path, reused=True, seconds=about["seconds"])

    def make(
        self, stage: str, key: Mapping[str, Any], build: Callable[[Path], None], spent: float | None = None
    ) -> CachedResult:
        """Returns the stored result for `key`, or builds it; of several processes that want it, one does.

        Args:
            stage: folder of the store, such as `backbone`.
            key: everything the result depends on, JSON-serialisable, and nothing else.
            build: fills the (existing, empty) folder it is given.
            spent: seconds the result took, where `build` only writes it down; None to time `build`.
        """
        found = self.find(stage, key)
        if found:
            return found
        with self.lock(stage, key):
            return self.find(stage, key) or self._build(stage, key, build, spent)

    def _build(
        self, stage: str, key: Mapping[str, Any], build: Callable[[Path], None], spent: float | None
    ) -> CachedResult:
        path = self._path(stage, key)
        discard(path)  # without its record it is no result
        started = time.monotonic()
        with atomic_path(path, keep_existing=True) as part:
            part.mkdir()
            build(part)
            seconds = time.monotonic() - started if spent is None else spent
            _record(part, stage, key, seconds)
        return CachedResult(path, reused=False, seconds=seconds)

    def replace(self, stage: str, key: Mapping[str, Any], build: Callable[[Path], None]) -> None:
        """Writes a result that changes while work goes on, in place of an earlier one; `find` finds it.

        Args:
            stage, key: what it is found by.
            build: fills the (existing, empty) folder it is given.
        """
        with atomic_path(self._path(stage, key)) as part:
            part.mkdir()
            build(part)
            _record(part, stage, key, 0.0)

    def keys(self, stage: str) -> list[dict[str, Any]]:
        """Keys of all results of a stage."""
        folders = [record.parent for record in sorted((self.root / stage).glob(f"*/{RECORD}"))]
        found = [read_record(folder) for folder in folders if folder.suffix != PART]
        return [about["key"] for about in found if about is not None]

    def drop(self, stage: str, key: Mapping[str, Any]) -> None:
        """Deletes a result, if it is there."""
        discard(self._path(stage, key))

    @contextmanager
    def lock(self, stage: str, key: Mapping[str, Any]) -> Iterator[None]:
        """Holds the making of a result; whoever wants it as well waits, and says for whom.

        The lock is the operating system's, so it is free again the moment its owner ends, however it ends.
        """
        path = self.root / "locks" / f"{stage}-{hash_key({'stage': stage, **key})}.lock"
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(path, timeout=0)
        owner = path.with_suffix(".owner")
        try:
            held.acquire()
        except Timeout:
            print(f"waiting for {_words(owner)}, which makes {path.stem}", flush=True)
            held.acquire(timeout=-1)
        try:
            write_json(owner, {"host": platform.node(), "process": os.getpid(), "since": time.time()})
            yield
        finally:
            owner.unlink(missing_ok=True)
            held.release()

    def _path(self, stage: str, key: Mapping[str, Any]) -> Path:
        return self.root / stage / hash_key({"stage": stage, **key})


def _record(folder: Path, stage: str, key: Mapping[str, Any], seconds: float) -> None:
    """Writes what a result is, and checksums of its files and of the record itself."""
    about = {
        "stage": stage,
        "key": key,
        "versions": package_versions(),
        "seconds": seconds,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": {name: file_checksum(folder / name) for name in files_of(folder)},
    }
    (folder / RECORD).write_text(json.dumps({**about, CHECKSUM: hash_key(about)}, indent=2), encoding="utf-8")


@dataclass(frozen=True)
class Unfinished:
    """What work that was begun would go on from, kept under `interrupted` until the work is done.

    Attributes:
        store: where.
        key: of the work.
    """

    cache: Cache
    key: Mapping[str, Any]

    def find(self) -> Path | None:
        """The folder that an interrupted run left."""
        found = self.cache.find("interrupted", self.key)
        return found.path if found else None

    def write(self, build: Callable[[Path], None]) -> None:
        """Replaces it; `build` fills the (existing, empty) folder it is given."""
        self.cache.replace("interrupted", self.key, build)

    def remove(self) -> None:
        """Deletes it; the work is done."""
        self.cache.drop("interrupted", self.key)


@dataclass(frozen=True)
class Workspace:
    """What every stage of a run works with.

    Attributes:
        run_dir: the run folder.
        store: finished results of this run and others.
        seed: the run's.
        trainer: builds a `lightning.Trainer` from keyword arguments.
    """

    run_dir: Path
    cache: Cache
    seed: int
    trainer: Callable[..., Any]


def link(source: Path, target: Path) -> None:
    """Puts a stored file, or a folder of files, into a run folder without a second copy where the file system can.

    A hard link, so that the run keeps its file whatever becomes of the store.
    """
    if source.is_dir():
        for file in sorted(source.iterdir()):
            if file.name != RECORD:
                link(file, target / file.name)
        return
    with atomic_path(target) as part:
        try:
            os.link(source, part)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, part)


def _words(owner: Path) -> str:
    try:
        about = json.loads(owner.read_text("utf-8"))
    except (OSError, ValueError):
        return "another process"
    minutes = (time.time() - about["since"]) / 60
    return f"process {about['process']} on {about['host']} (since {minutes:.0f} min)"
