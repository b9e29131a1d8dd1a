"""The record beside a cached result, `artifact.json`: its key, the versions that made it, and its files' checksums."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gradfiltering.errors import UserError
from gradfiltering.runs.files import file_checksum, hash_key, link_file

RECORD_FILE, CHECKSUM = "artifact.json", "checksum"
RECORDED_PACKAGES = ("torch", "lightning", "transformers", "peft", "datasets", "torchmetrics", "numpy", "pyarrow")


@cache
def _installed_versions() -> dict[str, str]:
    return {package: version(package) for package in RECORDED_PACKAGES}


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that decide a result's bits."""
    return dict(_installed_versions())


def write_record(folder: Path, kind: str, key: Mapping[str, Any], seconds: float) -> None:
    """Write the record of a result, with checksums of its files and of the record itself."""
    record = {
        "stage": kind,
        "key": key,
        "versions": package_versions(),
        "seconds": seconds,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": {name: file_checksum(folder / name) for name in list_result_files(folder)},
    }
    signed_record = {**record, CHECKSUM: hash_key(record)}
    (folder / RECORD_FILE).write_text(json.dumps(signed_record, indent=2), encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any] | None:
    """Read the record of a result; None where there is none, or one of an early version without its checksum.

    Raises:
        UserError: the record is not what was written.
    """
    record_path = folder / RECORD_FILE
    try:
        record: dict[str, Any] = json.loads(record_path.read_bytes())
        checksum = record.pop(CHECKSUM, None)
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError):
        raise damage_error(record_path) from None
    if checksum is None:
        return None
    if checksum != hash_key(record):
        raise damage_error(record_path)
    return record


def list_result_files(folder: Path) -> list[str]:
    """List the files of a result, relative to its folder, without the record."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != RECORD_FILE)
    return [path.relative_to(folder).as_posix() for path in paths]


def find_damaged_files(
    folder: Path, checksums: Mapping[str, str], checksum: Callable[[Path], str] = file_checksum
) -> list[str]:
    """Name the files that are gone, or are not what they were when `checksums` (name -> checksum) was recorded."""
    present_files = set(list_result_files(folder))
    return sorted(
        name for name, recorded in checksums.items() if name not in present_files or checksum(folder / name) != recorded
    )


def checksum_once(path: Path) -> str:
    """Return the checksum of a file, computed once a process as long as nobody writes to the file."""
    status = path.stat()
    return _checksum_of_state(path, status.st_ino, status.st_size, status.st_mtime_ns)


@cache
def _checksum_of_state(path: Path, *state: int) -> str:
    return file_checksum(path)


def damage_error(path: Path) -> UserError:
    """Return the error for a file of a result that is not what was written."""
    result_folder = next((folder for folder in path.parents if (folder / RECORD_FILE).is_file()), path.parent)
    return UserError(
        f"{path} is not what was written there: the disk is failing, or somebody changed the file (a run folder may "
        f"link to it). Delete {result_folder} to make it anew; `gradfiltering cache verify` finds more"
    )


def link_result(source: Path, target: Path) -> None:
    """Put a cached file, or the files of a cached folder, at a place in a run folder."""
    if source.is_dir():
        for name in list_result_files(source):
            link_file(source / name, target / name)
    else:
        link_file(source, target)
