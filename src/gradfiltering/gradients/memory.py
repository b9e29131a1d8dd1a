"""The number of tokens computed at once, found by trying what fits into memory."""

import psutil
import torch

from gradfiltering.data.batches import Batch
from gradfiltering.errors import UserError
from gradfiltering.gradients.engine import GradientEngine
from gradfiltering.models.lora import Adapters, member_count

MOST_TOKENS = {"cpu": 16384, "cuda": 131072}  # beyond this a larger chunk is no faster
MEMORY_SHARE = 0.5  # of free memory; the rest is for longer rows, other programs, the page cache
AUTO = "auto"


def find_fitting_tokens(engine: GradientEngine, adapters: Adapters, row_width: int, device: torch.device) -> int:
    """Find the largest chunk that fits, up to where a larger one is no faster.

    Doubles the size of an invented batch until half of the free memory is taken.

    Args:
        engine: on `device`.
        adapters: on `device`.
        row_width: tokens of the longest row.
        device: computes.

    Returns:
        Padded tokens, over members and examples.

    Raises:
        UserError: one row of one member does not fit.
    """
    stack_size = member_count(adapters)
    most_tokens = MOST_TOKENS.get(device.type, MOST_TOKENS["cpu"])
    free_bytes, used_bytes = _free_memory(device), _used_memory(device)
    tried_tokens = fitting_tokens = max(row_width, most_tokens // 16)
    while tried_tokens <= most_tokens:
        row_count = max(1, tried_tokens // (stack_size * row_width))
        token_ids = torch.zeros(row_count, row_width, dtype=torch.int64, device=device)
        engine.chunk_tokens = tried_tokens
        try:
            batch = Batch(token_ids, token_ids, torch.arange(row_count))
            engine.measure(adapters, batch, with_mean_gradient=True)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"one row of {row_width} tokens does not fit into the memory of {device} "
                f"({free_bytes / 2**30:.1f} GiB free); cut rows to fewer tokens, take weights in "
                "bf16, or choose a smaller model"
            ) from error
        if engine.chunk_tokens < tried_tokens:  # it ran out of memory and went back
            return engine.chunk_tokens
        fitting_tokens = tried_tokens
        if 2 * (_used_memory(device) - used_bytes) > MEMORY_SHARE * free_bytes:
            break
        tried_tokens *= 2
    return fitting_tokens


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def _used_memory(device: torch.device) -> int:
    """Peak bytes; on a CPU those the process holds, as freed buffers are kept."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return psutil.Process().memory_info().rss
