"""Where a stage's result lives and what it was made from.

A result is a folder named by a fingerprint of everything it depends on. It is written to `*.part` and renamed into
place, so a folder without the suffix is whole. `artifact.json` beside the result says what made it.
"""

import errno
import hashlib
import json
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

from gradfiltering.errors import UserError, is_disk_full

WRITE_FAILURES = {
    errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG
}  # fmt: skip
RECORDED_PACKAGES = ("torch", "lightning", "transformers", "peft", "datasets", "torchmetrics", "numpy", "pyarrow")


def fingerprint(value: Any) -> str:
    """Hex digest (32 characters) of a JSON-serialisable value; the order of mapping keys does not matter."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide a result's bits."""
    return {name: version(name) for name in RECORDED_PACKAGES}


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

    def make(self, stage: str, key: Mapping[str, Any], build: Callable[[Path], None]) -> Artifact:
        """Returns the stored result for `key`, or builds it.

        Args:
            stage: folder of the store, such as `backbone`.
            key: everything the result depends on, JSON-serialisable, and nothing else.
            build: fills the (existing, empty) folder it is given.
        """
        path = self.root / stage / fingerprint({"stage": stage, **key})
        record = path / "artifact.json"
        if record.is_file():
            return Artifact(path, reused=True, seconds=json.loads(record.read_text("utf-8"))["seconds"])
        shutil.rmtree(path, ignore_errors=True)  # without its record it is no result
        started = time.monotonic()
        with atomic_path(path, keep_existing=True) as part:
            part.mkdir()
            build(part)
            seconds = time.monotonic() - started
            made = datetime.now(UTC).isoformat(timespec="seconds")
            about = {"stage": stage, "key": key, "versions": package_versions(), "seconds": seconds, "made": made}
            (part / "artifact.json").write_text(json.dumps(about, indent=2), encoding="utf-8")
        return Artifact(path, reused=False, seconds=seconds)

    def scratch(self, stage: str, key: Mapping[str, Any], suffix: str) -> Path:
        """Path of a single cache file for `key`; whoever writes it must rename it into place."""
        folder = self.root / stage
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder / (fingerprint({"stage": stage, **key}) + suffix)
