"""Files of the hub, of object stores and of web servers, read through fsspec as they come."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any, cast
from urllib.parse import urlsplit

from gradfiltering.data.dataset_folders import SHARD_NAME
from gradfiltering.errors import UserError

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+(://|::)", re.IGNORECASE)
LOCAL_ADDRESS = re.compile(r"(file|local)://")
READ_AHEAD = 2**20  # bytes
# Entries of a file's description that change whenever its content does; dates do not, within their resolution.
CONTENT_ENTRIES = (
    "ETag", "etag", "Content-MD5", "content_md5", "Digest", "md5Hash", "md5", "crc32c", "sha256", "checksum", "blob_id",
    "generation", "VersionId", "version_id",
)  # fmt: skip


@dataclass(frozen=True)
class RemoteFile:
    """A file of another machine.

    Attributes:
        file_system: of fsspec.
        path: within the file system.
        address: as messages and caches name it, without a password or what follows `?`.
    """

    file_system: Any
    path: str
    address: str

    def __str__(self) -> str:
        return self.address

    @property
    def name(self) -> str:
        """The last part of the path, without the query of a web address."""
        path = urlsplit(self.path).path if _is_web_address(self.path) else self.path
        return PurePosixPath(path).name

    @property
    def suffix(self) -> str:
        """The suffix of the name, dot included."""
        return PurePosixPath(self.name).suffix

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """Open the file; bytes are fetched as they are read, some ahead.

        Args:
            mode: `rb`, as files are read alone.

        Raises:
            UserError: it cannot be reached.
        """
        with explained_access(self.address):
            remote_stream = cast(io.RawIOBase, self.file_system.open(self.path, mode))
            return io.BufferedReader(remote_stream, READ_AHEAD)

    def open_anywhere(self) -> IO[bytes]:
        """Open the file for reads at any place of it.

        Raises:
            UserError: it cannot be reached, or only be read from start to end.
        """
        with explained_access(self.address):
            stream: IO[bytes] = self.file_system.open(self.path, "rb")
            try:
                stream.seek(0, io.SEEK_END)
                stream.seek(0)
            except (OSError, ValueError, TypeError) as error:
                raise UserError(
                    f"{self.address} can be read from start to end alone, and {self.suffix} files need reads in any "
                    "order; fetch it and name the copy, or give it as jsonl"
                ) from error
        return stream

    def content_version(self) -> str | None:
        """Return what the store says of the content, such as its ETag; None where it says nothing that tells changes.

        Raises:
            UserError: the file cannot be reached.
        """
        with explained_access(self.address):
            entry = self.file_system.info(self.path)
        entries = {name: str(entry[name]) for name in CONTENT_ENTRIES if entry.get(name)}
        return f"{entry.get('size')} {sorted(entries.items())}" if entries else None


def is_address(path: str) -> bool:
    """Return True for the address of a file elsewhere: `s3://…`, `hf://…`, `https://…` and whatever fsspec reads."""
    return ADDRESS.match(path) is not None and LOCAL_ADDRESS.match(path) is None


def public_address(address: str) -> str:
    """Return an address without user and password, and of a web address without the query, which may hold a key."""
    without_user = re.sub(r"://[^/]*@", "://", address)  # up to the last @, as a password may hold others
    return re.sub(r"(https?://[^?]*)\?.*", r"\1", without_user)


def list_remote_files(address: str, split: str | None = None) -> list[RemoteFile]:
    """List the files that an address names: one file, those directly in a folder, or those that match a glob.

    Args:
        address: an address of fsspec.
        split: of a folder with files named as `train-00000-of-00002.parquet`; None for all files, which must not
            be of several splits.

    Raises:
        UserError: it cannot be reached, a package that reads such addresses is not installed, or the splits are
            several.
    """
    import fsspec

    with explained_access(public_address(address)):
        file_system, path = fsspec.core.url_to_fs(address)
        file_system.invalidate_cache()
        try:
            entry = file_system.info(path)
        except FileNotFoundError:
            # The query of a web address is no pattern.
            if not any(sign in path for sign in ("*[" if _is_web_address(path) else "*?[")):
                raise
            return _remote_files(file_system, address, file_system.glob(path, detail=True).values())
        if entry["type"] != "directory":
            return [RemoteFile(file_system, path, public_address(address))]
        files = _remote_files(file_system, address, file_system.ls(path, detail=True))
    visible_files = [file for file in files if not file.name.startswith((".", "_"))]
    split_of_file = {file: match["split"] for file in visible_files if (match := SHARD_NAME.fullmatch(file.name))}
    if split is None:
        split_names = sorted(set(split_of_file.values()))
        if len(split_names) > 1:
            raise UserError(
                f"{public_address(address)} holds several splits ({', '.join(split_names)}); name the files of one "
                "of them with a glob"
            )
        return visible_files
    split_files = [file for file, file_split in split_of_file.items() if file_split == split]
    if not split_files:
        raise UserError(
            f"{public_address(address)} holds no file of the split {split}, such as {split}-00000-of-00001.parquet; "
            "name its files with a glob"
        )
    return split_files


def _is_web_address(path: str) -> bool:
    return path.startswith(("http://", "https://"))


def _remote_files(file_system: Any, address: str, entries: Any) -> list[RemoteFile]:
    names = sorted(entry["name"] for entry in entries if entry["type"] == "file")
    # Of a chain such as `zip://*.jsonl::https://…` the first part names files, and the rest where they lie.
    outer_address = address.partition("::")[2]
    return [
        RemoteFile(
            file_system,
            name,
            public_address(file_system.unstrip_protocol(name) + (f"::{outer_address}" if outer_address else "")),
        )
        for name in names
    ]


@contextmanager
def explained_access(address: str) -> Iterator[None]:
    """Explain why another machine's file cannot be read; each kind of store raises errors of its own.

    Raises:
        UserError: names the address, the store's own words and what to look at.
    """
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{address} cannot be read: {error}; {_install_command(address)}") from error
    except FileNotFoundError as error:
        reason = "" if error.__cause__ is None else f" ({_public_reason(error.__cause__)})"  # a server's refusal, say
        raise UserError(f"no such file: {address}{reason}; check the address, and your credentials for it") from error
    except Exception as error:
        raise UserError(
            f"{address} cannot be read: {type(error).__name__}: {_public_reason(error)}; check the address, the "
            "connection and your credentials for it"
        ) from error


def _public_reason(error: BaseException) -> str:
    """Return an error's message on one line, without users, passwords and queries of the addresses in it."""
    without_users = re.sub(r"://[^/\s'\"]*@", "://", " ".join(str(error).split()))
    return re.sub(r"(https?://[^?\s'\"]*)\?[^\s'\")]*", r"\1", without_users)[:300]


def _install_command(address: str) -> str:
    from fsspec.registry import known_implementations

    protocol = re.split(r"://|::", address)[0]
    package = known_implementations.get(protocol, {}).get("class", protocol).partition(".")[0]
    return f"install what reads such addresses: pip install {package}"
