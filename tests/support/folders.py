"""Folders that cannot be written, whoever runs the tests."""

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Keep anybody from writing below `folder`: by permissions, or by a mount for root, whom they do not bind."""
    if os.geteuid() == 0:
        bound = subprocess.run(["mount", "--bind", str(folder), str(folder)], capture_output=True, text=True)
        if bound.returncode:
            pytest.skip(f"root cannot be kept from writing here: {bound.stderr}")
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
            yield
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        return
    writable = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
    modes = {path: path.stat().st_mode for path in [folder, *folder.rglob("*")] if not path.is_symlink()}
    try:
        for path, mode in modes.items():
            path.chmod(mode & ~writable)
        yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
