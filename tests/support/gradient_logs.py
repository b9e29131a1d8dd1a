"""Gradient logs written by hand, in the files that a run leaves."""

from collections.abc import Sequence
from pathlib import Path

from gradfiltering.requests import EpochLog
from gradfiltering.runs.gradient_log import PARQUET_FILE, partition_folder, write_member


def write_epoch(log_folder: Path, log: EpochLog, members: Sequence[int], epoch: int) -> None:
    """Write one epoch of a log, a parquet file for each member."""
    for position, member in enumerate(members):
        folder = partition_folder(log_folder, member, epoch)
        folder.mkdir(parents=True, exist_ok=True)
        write_member(folder / PARQUET_FILE, log, position)
