"""A check that all ranks read and write the same folder, under the same path."""

import logging
import platform
import time
from pathlib import Path

from gradfiltering.distributed.process_group import gather_from_ranks, rank, run_on_rank_zero, world_size
from gradfiltering.errors import UserError
from gradfiltering.runs.cache_record import RECORD_FILE
from gradfiltering.runs.files import explain_failed_writes, temporary_path

WAIT_SECONDS = 10.0  # for a file written on one machine to be seen on the others
LOOK_SECONDS = 0.1  # between two looks at a file that another machine wrote

logger = logging.getLogger(__name__)


def check_shared_folder(folder: Path, owner: object) -> None:
    """Make sure that all ranks read the same cache folder, under the same path.

    Rank zero writes a file, which every rank must see within `WAIT_SECONDS`. Where rank zero cannot write, the file is
    the record of a result; where there is none either, there is nothing to read, and no check.

    Args:
        folder: of the cache, as this rank knows it.
        owner: of the argument `path` that names the folder, for the error.

    Raises:
        UserError: some rank sees another folder; every rank raises it.
    """
    if world_size() == 1:
        return
    first_folder, file_name, is_new = run_on_rank_zero(_offer_file, folder)
    if not file_name:
        return
    # Results are read by the path that rank zero has; what ranks write together lies below the path of each.
    sees_file = all(_appears(seen_folder / file_name) for seen_folder in dict.fromkeys([first_folder, folder]))
    ranks_without = [] if sees_file else [f"rank {rank()} on {platform.node()} ({folder.absolute()})"]
    missing_descriptions = [text for texts in gather_from_ranks(ranks_without) for text in texts]
    if is_new and rank() == 0:
        (folder / file_name).unlink(missing_ok=True)
    if missing_descriptions:
        raise UserError(
            f"the processes do not share the cache folder: a file that rank 0 wrote to {first_folder.absolute()} "
            f"did not appear within {WAIT_SECONDS:g} seconds for {'; '.join(missing_descriptions)}. Give a "
            "folder that all machines mount under the same path, such as one on NFS or Lustre",
            owner,
            ("path",),
        )


def _offer_file(folder: Path) -> tuple[Path, str, bool]:
    """Return the folder, the name of a file in it for all ranks to look for, and whether it was written for that.

    The name is empty where the folder can be neither written nor read from.
    """
    probe_path = temporary_path(folder / "shared")
    try:
        with explain_failed_writes(folder):
            folder.mkdir(parents=True, exist_ok=True)
            probe_path.touch()
        return folder, probe_path.name, True
    except UserError as write_error:
        logger.info("the cache cannot be written, so a result in it is looked for on all machines: %s", write_error)
        record_path = next(folder.glob(f"*/*/{RECORD_FILE}"), None)
        return folder, "" if record_path is None else str(record_path.relative_to(folder)), False


def _appears(file_path: Path) -> bool:
    """Return True as soon as a file is there, False where it does not come in time."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not file_path.is_file():
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_SECONDS)
    return True
