"""Memory that a chunk of work takes, planned from the shapes of a few small ones, and the chunk that fits and pays."""

import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gradfiltering.data.batches import IGNORED, Batch
from gradfiltering.errors import UserError
from gradfiltering.gradients.engine import GradientEngine
from gradfiltering.models.causal_model import CHUNK_BYTES, logit_bytes
from gradfiltering.models.lora import Adapters, member_count

MOST_TOKENS = {"cpu": 2048, "cuda": 131072}  # beyond this a larger chunk is no faster
PAYING_BYTES = {"cpu": 1 << 30}  # nor is one that holds more, unless it has fewer than LEAST_TOKENS
LEAST_TOKENS = 512
MEMORY_SHARE = 0.5  # of free memory; the rest is for longer rows, other programs, the page cache
TRIAL_WIDTH = 256  # tokens of the longest row that is tried; what more take follows from their shapes
LOGIT_COPIES = 2  # slices of the output layer that are held at once: logits and probabilities
RESPONSE_SHARE = 3  # of the tokens tried, one in three is of a response, as in rows of instructions

logger = logging.getLogger(__name__)
_measured_memory: "weakref.WeakKeyDictionary[GradientEngine, dict[int, ChunkMemory]]" = weakref.WeakKeyDictionary()


class LiveBytes(TorchDispatchMode):
    """Follows the bytes of all tensors that are made inside the block, each storage once, as they come and go.

    What existed before, such as a model's weights, does not count. Works on every device, the meta device included.

    Attributes:
        peak: the most bytes that lived at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it without types
        self.peak = self._live = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note the storages that its results bring."""
        keywords = kwargs or {}
        for tensor in tree_leaves((args, keywords)):
            self._note(tensor, is_new=False)
        results = function(*args, **keywords)
        for tensor in tree_leaves(results):
            self._note(tensor, is_new=True)
        return results

    def _note(self, tensor: Any, is_new: bool) -> None:
        if not isinstance(tensor, Tensor):
            return
        storage = tensor.untyped_storage()
        storage_id = storage._cdata
        if storage_id in self._sizes:
            return
        self._sizes[storage_id] = storage.nbytes() if is_new else 0
        self._live += self._sizes[storage_id]
        self.peak = max(self.peak, self._live)
        weakref.finalize(storage, self._forget, storage_id)

    def _forget(self, storage_id: int) -> None:
        self._live -= self._sizes.pop(storage_id, 0)


@dataclass(frozen=True)
class ChunkMemory:
    """Bytes that a chunk takes at its peak, beside the weights and the adapters.

    Attributes:
        fixed: for each member: its adapter in the base model's type, and sums of gradients.
        per_token: for each padded token.
        per_attended: for each padded token times the width of its row, where attention holds the scores.
        logits: for each position whose logits are made, a third of the tokens; bounded by the slices they come in.
        slice_bytes: of logits at most.
    """

    fixed: float
    per_token: float
    per_attended: float
    logits: int
    slice_bytes: int = CHUNK_BYTES

    def peak(self, tokens: int, row_width: int, members: int) -> int:
        """Return the bytes of so many padded tokens, over members, in rows padded to `row_width`."""
        held_logits = min(self.slice_bytes, self.logits * tokens // RESPONSE_SHARE)
        token_bytes = tokens * (self.per_token + row_width * self.per_attended)
        return int(members * self.fixed + token_bytes + LOGIT_COPIES * held_logits)

    def most_tokens(self, memory: float, row_width: int, members: int) -> int:
        """Return the most tokens that take no more than `memory` bytes; may be 0."""
        token_bytes = self.per_token + row_width * self.per_attended
        chunk_bytes = memory - members * self.fixed
        with_few_logits = chunk_bytes / (token_bytes + LOGIT_COPIES * self.logits / RESPONSE_SHARE)
        with_full_slices = (chunk_bytes - LOGIT_COPIES * self.slice_bytes) / max(token_bytes, 1.0)
        return max(0, int(with_few_logits), int(with_full_slices))


def measure_chunk_memory(engine: GradientEngine, adapters: Adapters, row_width: int) -> ChunkMemory:
    """Measure what chunks take, once for an engine, by the live bytes of three rows of a few tokens under one member.

    Bytes are a sum of parts that are constant, linear in the tokens, and of tokens times width, so three widths give
    all three. One position has a label: what the output layer takes is bounded by its slices.

    Args:
        engine: on its device.
        adapters: on its device.
        row_width: tokens of the longest row.
    """
    one_member = {name: stacked[:1] for name, stacked in adapters.items()}
    device = next(iter(adapters.values())).device

    def measure_row(row: Batch) -> None:
        engine.chunk_tokens = row.input_ids.numel()
        with engine.on_trial():
            engine.measure(one_member, row.to(device), with_mean_gradient=True)

    known_widths = _measured_memory.setdefault(engine, {})
    if row_width not in known_widths:
        head_weights = engine.base_model.get_output_embeddings().weight
        known_widths[row_width] = fit_chunk_memory(measure_row, row_width, head_weights)
    return known_widths[row_width]


def fit_chunk_memory(measure_row: Callable[[Batch], None], row_width: int, head_weights: Tensor) -> ChunkMemory:
    """Fit the bytes of chunks to rows of three widths.

    Args:
        measure_row: computes one row [1, T] with all that it holds on to.
        row_width: tokens of the longest row.
        head_weights: [V, D] of the output layer.
    """
    longest = max(1, min(TRIAL_WIDTH, row_width))
    widths = sorted({max(1, longest // 4), max(1, longest // 2), longest})
    measure_row(trial_batch(1, widths[0], one_label=True))  # what is made once, such as rotary tables, does not count
    peaks = []
    for width in widths:
        with LiveBytes() as live_bytes:
            measure_row(trial_batch(1, width, one_label=True))
        peaks.append(live_bytes.peak)
    degree = min(2, len(widths) - 1)
    coefficients = [*reversed(np.polyfit(widths, peaks, degree).tolist()), 0.0, 0.0][:3]
    fixed, per_token, per_attended = (max(0.0, coefficient) for coefficient in coefficients)
    position_bytes = len(head_weights) * head_weights.element_size()
    return ChunkMemory(fixed, per_token, per_attended, position_bytes, logit_bytes(head_weights.device.type))


def trial_batch(rows: int, width: int, one_label: bool = False, members: int | None = None) -> Batch:
    """Invent a batch with labels at response positions only: its last token, or the last third of every row."""
    shape = (rows, width) if members is None else (members, rows, width)
    input_ids = torch.zeros(shape, dtype=torch.int64)
    labels = input_ids.clone()
    labels[..., : width - (1 if one_label else -(-width // RESPONSE_SHARE))] = IGNORED
    return Batch(input_ids, labels, torch.arange(rows).expand(shape[:-1]))


def find_fitting_tokens(
    engine: GradientEngine,
    adapters: Adapters,
    row_width: int,
    device: torch.device,
    memory_limit: int | None = None,
) -> int:
    """Find the largest chunk that fits into memory, up to where a larger one is no faster.

    It is planned from shapes, and tried once with an invented batch; where the plan was too bold, it is corrected.

    Args:
        engine: on `device`.
        adapters: on `device`.
        row_width: tokens of the longest row.
        device: computes.
        memory_limit: bytes that a chunk may take; None for half of the free memory.

    Returns:
        Padded tokens, over members and examples.

    Raises:
        UserError: one row of one member does not fit.
    """
    stack_size = member_count(adapters)
    free_bytes = free_memory(device)
    try:
        chunk_memory = measure_chunk_memory(engine, adapters, row_width)
    except torch.OutOfMemoryError as error:
        raise _does_not_fit(row_width, None, free_bytes, memory_limit, device) from error
    allowed_bytes = MEMORY_SHARE * free_bytes if memory_limit is None else min(memory_limit, free_bytes)
    most_tokens = MOST_TOKENS.get(device.type, MOST_TOKENS["cpu"])
    if device.type in PAYING_BYTES:
        paying_tokens = chunk_memory.most_tokens(PAYING_BYTES[device.type], row_width, stack_size)
        most_tokens = min(most_tokens, max(LEAST_TOKENS, paying_tokens))
    planned_tokens = min(most_tokens, chunk_memory.most_tokens(allowed_bytes, row_width, stack_size))
    row_bytes = chunk_memory.peak(row_width, row_width, 1)
    if row_bytes > (free_bytes if memory_limit is None else allowed_bytes):
        raise _does_not_fit(row_width, row_bytes, free_bytes, memory_limit, device)
    planned_tokens = max(row_width, planned_tokens)
    if planned_tokens == row_width and device.type == "cpu":  # one row, which nothing could make smaller
        return row_width
    row_count = max(1, planned_tokens // (stack_size * row_width))
    members = max(1, min(stack_size, planned_tokens // row_width))
    tried_adapters = {name: stacked[:members] for name, stacked in adapters.items()}
    engine.chunk_tokens = planned_tokens
    try:
        with LiveBytes() as live_bytes, engine.on_trial():
            engine.measure(tried_adapters, trial_batch(row_count, row_width).to(device), with_mean_gradient=True)
    except torch.OutOfMemoryError as error:
        raise _does_not_fit(row_width, row_bytes, free_bytes, memory_limit, device) from error
    fitting_tokens = engine.chunk_tokens  # smaller where it ran out of memory and went back
    if live_bytes.peak > allowed_bytes:
        fitting_tokens = max(row_width, int(fitting_tokens * allowed_bytes / live_bytes.peak))
    logger.info(
        "chunks of %d padded tokens: planned %.0f MiB, tried %.0f MiB",
        fitting_tokens,
        chunk_memory.peak(members * row_count * row_width, row_width, members) / 2**20,
        live_bytes.peak / 2**20,
    )
    return fitting_tokens


def _does_not_fit(
    row_width: int, row_bytes: int | None, free_bytes: int, memory_limit: int | None, device: torch.device
) -> UserError:
    needed_text = "" if row_bytes is None else f"it takes about {row_bytes / 2**30:.2f} GiB, "
    limit_text = "" if memory_limit is None else f", and the limit is {memory_limit / 2**30:.2f} GiB"
    return UserError(
        f"one row of {row_width} tokens does not fit into the memory of {device} ({needed_text}"
        f"{free_bytes / 2**30:.1f} GiB are free{limit_text}); cut rows to fewer tokens, "
        "take weights in bf16, or choose a smaller model"
    )


def free_memory(device: torch.device) -> int:
    """Return the free bytes of a device; of the machine for a CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available_bytes: int = psutil.virtual_memory().available
    return available_bytes
