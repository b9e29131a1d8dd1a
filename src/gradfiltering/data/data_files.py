"""Data files: which files a path names, and of which kind each is."""

import glob
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, BinaryIO

from gradfiltering.data.dataset_folders import find_split_files
from gradfiltering.data.remote_files import (
    LOCAL_ADDRESS,
    RemoteFile,
    explained_access,
    is_address,
    list_remote_files,
    public_address,
)
from gradfiltering.errors import UserError

KIND_BY_SUFFIX = {
    ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow",
}  # fmt: skip
COMPRESSION_BY_SUFFIX = {".gz": "gzip", ".zst": "zstd"}
TYPED_KINDS = ("parquet", "arrow")
ENTRY_POINT_GROUP = "gradfiltering.file_formats"


@dataclass(frozen=True)
class DataFile:
    """One file to read.

    Attributes:
        path: where it is.
        kind: json, jsonl, csv, tsv, parquet or arrow.
        compression: gzip, zstd or None.
    """

    path: Path | RemoteFile
    kind: str
    compression: str | None


RowReader = Callable[[BinaryIO], Iterable[dict[str, Any]]]


@cache
def load_row_readers() -> dict[str, RowReader]:
    """Load the file formats of other packages: suffix without its dot -> reader of an open file's rows.

    A package names them as entry points of the group `gradfiltering.file_formats`; a suffix of this
    project cannot be taken.
    """
    readers = {entry_point.name: entry_point.load() for entry_point in entry_points(group=ENTRY_POINT_GROUP)}
    return {suffix: reader for suffix, reader in readers.items() if f".{suffix}" not in KIND_BY_SUFFIX}


def readable_suffixes() -> list[str]:
    """List the suffixes of all files that can be read, dots included."""
    return [*KIND_BY_SUFFIX, *(f".{suffix}" for suffix in load_row_readers())]


def find_data_files(path: str, split: str | None = None) -> list[DataFile]:
    """The files that a path, folder, glob or address names, in sorted order and all of one type.

    A path that exists is taken literally, whatever characters it holds. In a folder, hidden files and those of other
    types (a README) are passed over. A folder that `datasets` saved, and a copy of a dataset repository of the hub
    (its README may list the files of each split), give the files of a split.

    Args:
        path: what to read.
        split: of a folder with several; None takes the only one.

    Raises:
        UserError: nothing is there, nothing readable is there, the types differ, or the splits are several.
    """
    if not path.strip():
        raise UserError("the path of the data is empty; name a file, a folder or a glob")
    if is_address(path):
        return _check_kinds(public_address(path), _find_remote_files(path, split))
    path = LOCAL_ADDRESS.sub("", path)
    given_path = Path(path).expanduser()
    if given_path.is_file():
        return [_make_data_file(given_path)]
    if given_path.is_dir():
        file_paths = find_split_files(given_path, split)
        if file_paths is None:
            file_paths = sorted(
                entry for entry in given_path.iterdir() if entry.is_file() and not entry.name.startswith((".", "_"))
            )
        data_files = [_make_data_file(file_path) for file_path in file_paths if read_suffixes(file_path)[0]]
        if not data_files:
            raise UserError(
                f"{path} holds no file of a known type; files of {', '.join(readable_suffixes())} can be read"
            )
    else:
        matching_paths = sorted(glob.glob(str(given_path), recursive=True))  # noqa: PTH207  (the pattern may be absolute)
        data_files = [_make_data_file(Path(name)) for name in matching_paths if Path(name).is_file()]
    if not data_files:
        raise UserError(
            f"no such file: {path} (looked in {given_path.absolute().parent}); name a file, a folder or a glob"
        )
    return _check_kinds(path, data_files)


def _find_remote_files(address: str, split: str | None) -> list[DataFile]:
    remote_files = list_remote_files(address, split)
    if not remote_files:
        raise UserError(f"no such file: {public_address(address)}; check the address, or the pattern")
    if len(remote_files) == 1:
        return [_make_data_file(remote_files[0])]
    data_files = [_make_data_file(file) for file in remote_files if read_suffixes(file)[0]]
    if not data_files:
        raise UserError(
            f"{public_address(address)} holds no file of a known type; files of "
            f"{', '.join(readable_suffixes())} can be read"
        )
    return data_files


def _check_kinds(path: str, data_files: list[DataFile]) -> list[DataFile]:
    if len({data_file.kind for data_file in data_files}) > 1:
        name_by_kind = {data_file.kind: data_file.path.name for data_file in data_files}
        kinds_found = ", ".join(f"{kind}: {name}" for kind, name in name_by_kind.items())
        raise UserError(
            f"{path} mixes file types ({kinds_found}); name those of one type with a glob, such as "
            f"'{path.rstrip('/')}/*{data_files[0].path.suffix}'"
        )
    return data_files


def read_suffixes(path: Path | RemoteFile) -> tuple[str | None, str | None]:
    """Return kind and compression by the suffixes of a name; None for a kind that cannot be read, or no compression."""
    compression = COMPRESSION_BY_SUFFIX.get(path.suffix.lower())
    suffix = Path(path.name.removesuffix(path.suffix) if compression else path.name).suffix.lower()
    kind = KIND_BY_SUFFIX.get(suffix) or (suffix[1:] if suffix[1:] in load_row_readers() else None)
    return kind, compression


def _make_data_file(path: Path | RemoteFile) -> DataFile:
    kind, compression = read_suffixes(path)
    if kind is None:
        raise UserError(
            f"{path}: cannot read '{path.suffix}' files; give one of {', '.join(readable_suffixes())} (text ones "
            f"also with {' or '.join(COMPRESSION_BY_SUFFIX)} behind)"
        )
    if compression and kind in TYPED_KINDS:
        raise UserError(f"{path}: {kind} files are compressed inside; unpack it, for example with gunzip or zstd -d")
    return DataFile(path, kind, compression)


def explained_file_access(data_file: DataFile) -> AbstractContextManager[None]:
    """Turn what goes wrong while a remote file is read into errors with a remedy; a local file is left alone."""
    return explained_access(str(data_file.path)) if isinstance(data_file.path, RemoteFile) else nullcontext()
