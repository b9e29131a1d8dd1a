"""Where a stage's result lives and what it was made from.

A result is a folder named by a fingerprint of everything it depends on. It is written to `*.part` and renamed into
place, so a folder without the suffix is whole. `artifact.json` beside the result says what made it.
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
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gradfiltering.errors import UserError, is_disk_full

WRITE_FAILURES = {
    errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG
}  # fmt: skip
RECORD = "artifact.json"
RECORDED_PACKAGES = ("torch", "lightning", "transformers", "peft", "datasets", "torchmetrics", "numpy", "pyarrow")


def fingerprint(value: Any) -> str:
    """Hex digest (32 characters) of a JSON-serialisable value; the order of mapping keys does not matter."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide a result's bits."""
    return {name: version(name) for name in RECORDED_PACKAGES}


def files_of(folder: Path) -> list[str]:
    """Names of a result's own files, relative to its folder."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path.relative_to(folder).as_posix() for path in found if path.name != RECORD]


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
            "or place the run elsewhere with run_dir=, the store with store.path= and the cache of read files with the "
            "environment variable HF_DATASETS_CACHE"
        ) from error


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
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            if path.is_dir() and keep_existing:
                return
            if path.is_dir():
                shutil.rmtree(path)
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
class Artifact:
    """A finished result: its folder, whether an earlier run had made it, and the seconds its making took."""

    path: Path
    reused: bool
    seconds: float


class Store:
    """Finished results by what they depend on.

    Args:
        path: folder of the store; made when the first result is.
    """

    def __init__(self, path: Path | str):
        self.root = Path(path)

    def find(self, stage: str, key: Mapping[str, Any]) -> Artifact | None:
        """The stored result for `key`, if there is one."""
        path = self._path(stage, key)
        record = path / RECORD
        if not record.is_file():
            return None
        return Artifact(path, reused=True, seconds=json.loads(record.read_text("utf-8"))["seconds"])

    def make(
        self, stage: str, key: Mapping[str, Any], build: Callable[[Path], None], spent: float | None = None
    ) -> Artifact:
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
    ) -> Artifact:
        path = self._path(stage, key)
        shutil.rmtree(path, ignore_errors=True)  # without its record it is no result
        started = time.monotonic()
        with atomic_path(path, keep_existing=True) as part:
            part.mkdir()
            build(part)
            seconds = time.monotonic() - started if spent is None else spent
            made = datetime.now(UTC).isoformat(timespec="seconds")
            about = {
                "stage": stage,
                "key": key,
                "versions": package_versions(),
                "seconds": seconds,
                "made": made,
                "files": {name: checksum(part / name) for name in files_of(part)},
            }
            (part / RECORD).write_text(json.dumps(about, indent=2), encoding="utf-8")
        return Artifact(path, reused=False, seconds=seconds)

    @contextmanager
    def lock(self, stage: str, key: Mapping[str, Any]) -> Iterator[None]:
        """Holds the making of a result; whoever wants it as well waits, and says for whom.

        The lock is the operating system's, so it is free again the moment its owner ends, however it ends.
        """
        path = self.root / "locks" / f"{stage}-{fingerprint({'stage': stage, **key})}.lock"
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
        return self.root / stage / fingerprint({"stage": stage, **key})

    def scratch(self, stage: str, key: Mapping[str, Any], suffix: str) -> Path:
        """Path of a single cache file for `key`; whoever writes it must rename it into place."""
        folder = self.root / stage
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder / (fingerprint({"stage": stage, **key}) + suffix)


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
    store: Store
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


if __name__ == "__main__":
    from gradfiltering.upkeep import main

    main()
