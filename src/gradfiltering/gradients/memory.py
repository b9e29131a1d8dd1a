"""How much is computed at once: tried out against the memory there is."""

import ctypes
import sys

import psutil
import torch

from gradfiltering.data.batches import Batch
from gradfiltering.errors import UserError
from gradfiltering.gradients.engine import GradientEngine
from gradfiltering.models.lora import Adapters

MOST_TOKENS = {"cpu": 16384, "cuda": 131072}  # beyond this a larger chunk is no faster
MEMORY_SHARE = 0.5  # of what is free; the rest is for longer rows, other programs, the page cache
AUTO = "auto"


def fitting_tokens(engine: GradientEngine, adapters: Adapters, width: int, device: torch.device) -> int:
    """The largest chunk, up to where it stops paying, that was seen to fit.

    Doubles the size of a made-up batch until half of the free memory is taken.

    Args:
        engine: on `device`.
        adapters: on `device`.
        width: tokens of the longest row.
        device: where the work is done.

    Raises:
        UserError: one row of one member does not fit.
    """
    members = next(iter(adapters.values())).shape[0]
    most = MOST_TOKENS.get(device.type, MOST_TOKENS["cpu"])
    free, before = _free(device), _used(device)
    tokens = fits = max(width, most // 16)
    while tokens <= most:
        rows = max(1, tokens // (members * width))
        ids = torch.zeros(rows, width, dtype=torch.int64, device=device)
        engine.chunk_tokens = tokens
        try:
            engine.measure(adapters, Batch(ids, ids, torch.arange(rows)), want_gradient=True)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"one row of {width} tokens does not fit into the memory of {device} ({free / 2**30:.1f} GiB free); "
                "lower proxy.max_tokens, set precision=bf16, or choose a smaller proxy.model"
            ) from error
        if engine.chunk_tokens < tokens:  # it ran out of memory and went back
            return engine.chunk_tokens
        fits = tokens
        if 2 * (_used(device) - before) > MEMORY_SHARE * free:
            break
        tokens *= 2
    return fits


def keep_freed_memory() -> None:
    """Tells glibc to keep large freed buffers instead of returning them to the system on each free.

    A training step frees and takes the same buffers again; without this, a CPU step spends much of its time in page
    faults. Does nothing where the C library has no such setting.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3
        library.mallopt(mmap_threshold, 1 << 30)
        library.mallopt(trim_threshold, (1 << 31) - 1)


def _free(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _used(device: torch.device) -> int:
    """Peak bytes; on a CPU what the process holds, as freed buffers are kept."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else psutil.Process().memory_info().rss
