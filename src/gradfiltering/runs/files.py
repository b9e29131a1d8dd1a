"""Files that appear whole or not at all, and their checksums."""

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradfiltering.errors import UserError, is_disk_full
from gradfiltering.runs.plain_text import to_readable_json

WRITE_FAILURES = {
    errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG
}  # fmt: skip
PART_SUFFIX = ".part"  # of a name that is being written or deleted, or was when its process was killed


def hash_key(value: Any) -> str:
    """Return the hex digest (32 characters) of a JSON-serialisable value; the order of mapping keys does not matter."""
    json_text = json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(json_text.encode()).hexdigest()[:32]


def file_checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def explain_failed_writes(path: Path) -> Iterator[None]:
    """Explain a write that fails; other errors of the system (a file not found, no network) pass as they are.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    try:
        yield
    except Exception as write_error:
        if not is_disk_full(write_error) and not (
            isinstance(write_error, OSError) and write_error.errno in WRITE_FAILURES
        ):
            raise
        failure_reason = (write_error.strerror if isinstance(write_error, OSError) else None) or write_error
        raise UserError(
            f"cannot write {path}: {failure_reason}. Free some space or permit writing there, "
            "or place the run elsewhere with run_dir=, the cache with cache.path= and the cache of read files with the "
            "environment variable HF_DATASETS_CACHE"
        ) from write_error


def temporary_path(path: Path) -> Path:
    """Return a name beside `path` that nobody else uses, and nobody reads."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{PART_SUFFIX}")


def discard_folder(folder: Path) -> None:
    """Delete a folder that others may look at; it is gone at once, not file by file."""
    discarded_path = temporary_path(folder)
    try:
        folder.rename(discarded_path)
    except FileNotFoundError:
        return
    shutil.rmtree(discarded_path, ignore_errors=True)


@contextmanager
def atomic_path(path: Path, keep_existing: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path` (file or folder) and rename it into place when the block succeeds.

    Args:
        path: where the result will stand.
        keep_existing: leave a folder that is there by then as it is; another process made it and may be reading it.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    part_path = temporary_path(path)
    try:
        with explain_failed_writes(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part_path
            if path.is_dir() and keep_existing:
                return
            if path.is_dir():
                discard_folder(path)
            part_path.replace(path)
    finally:
        if part_path.is_dir():
            shutil.rmtree(part_path, ignore_errors=True)
        else:
            part_path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, whole or not at all."""
    with atomic_path(path) as part_path:
        part_path.write_text(to_readable_json(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def link_file(source_path: Path, target_path: Path) -> None:
    """Put a file at a second place, without a second copy where the file system can.

    A hard link, so that the run folder keeps its file whatever becomes of the cache.
    """
    with atomic_path(target_path) as part_path:
        try:
            os.link(source_path, part_path)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source_path, part_path)
