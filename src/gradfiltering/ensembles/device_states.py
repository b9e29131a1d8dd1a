"""Hidden states that enter the first adapted layer, computed once per row and kept in a GPU's own memory.

A GPU computes these states in less time than a disk takes to write or to read them, and training reads those of other
rows for each member, so that they would be copied to the GPU several times an epoch. They stay until all rows of a run
are measured.
"""

import gc
import time
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from gradfiltering.data.batches import LengthBatches, collate
from gradfiltering.data.examples import Examples, digest_rows
from gradfiltering.data.row_duplicates import find_first_equal
from gradfiltering.distributed.process_group import world_size
from gradfiltering.ensembles.batch_settings import BatchSettings
from gradfiltering.ensembles.prefix_states import count_prefix_bytes
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.gradients.prefix import FrozenPrefix
from gradfiltering.runs.logs import announce
from gradfiltering.runs.progress import track
from gradfiltering.runs.sizes import format_bytes

FREE_MEMORY_SHARE = 0.2  # of a GPU's free memory for one set of rows; a chunk of the work may take half of it

StateKind = tuple[str, int, str]
"""Digest of the base model, first adapted layer, and type: what the states of a row depend on."""


@dataclass(frozen=True)
class DeviceStates:
    """States of a set of rows, ready to be gathered into batches.

    Attributes:
        states: [tokens, D] of all rows, one row after the other, each padded to the length of those computed with it.
        row_starts: [N] int64 on the same device, where each row begins.
        row_lengths: [N] int64 on the same device, tokens of each row without padding.
        digests: [N, 2] uint64, of the rows.
        seconds: how long they took to make.
        is_new: False where an earlier pass of the run made them.
        positions: [K] of the rows that are asked for among those that are kept.
    """

    states: Tensor
    row_starts: Tensor
    row_lengths: Tensor
    digests: np.ndarray
    seconds: float
    is_new: bool
    positions: np.ndarray

    @classmethod
    def compute(cls, engine: FusedEngine, examples: Examples, pad_id: int, batch_tokens: int) -> "DeviceStates":
        """Compute the states of all rows on the engine's device.

        Args:
            engine: with a frozen prefix.
            examples: rows of one sequence each (`Examples.sequences`).
            pad_id: token id for padding.
            batch_tokens: padded tokens computed at once.
        """
        prefix, device = engine.prefix, engine.model.device
        assert prefix is not None and prefix.state_dtype is not None, "the engine was not checked, or has no prefix"
        start_time = time.monotonic()
        batches = LengthBatches(examples, batch_tokens, pad_id)
        padded_tokens = sum(len(rows) * int(examples.lengths[rows].max()) for rows in batches.cuts)
        states = torch.empty(padded_tokens, prefix.state_width, dtype=prefix.state_dtype, device=device)
        row_starts = np.zeros(len(examples), dtype=np.int64)
        description = f"frozen layers {prefix.layer_range} of {len(examples)} rows"
        announce(f"{description}: {format_bytes(states.nbytes)} of the device's memory")
        tokens_done = 0
        for rows in track(batches.cuts, f"computing the {description}", len(examples), amount_of=len):
            batch = collate(examples.read_rows(rows), pad_id, (len(rows),))
            row_count, width = batch.input_ids.shape
            row_starts[rows] = tokens_done + width * np.arange(row_count)
            batch_states = engine.compute_prefix_states(prefix, batch.input_ids.to(device))
            states[tokens_done : tokens_done + row_count * width] = batch_states.flatten(0, 1)
            tokens_done += row_count * width
        return cls(
            states=states,
            row_starts=torch.from_numpy(row_starts).to(device),
            row_lengths=torch.from_numpy(examples.lengths.astype(np.int64)).to(device),
            digests=digest_rows(examples),
            seconds=time.monotonic() - start_time,
            is_new=True,
            positions=np.arange(len(examples)),
        )

    def find(self, digests: np.ndarray) -> "DeviceStates | None":
        """Return the states of these rows, [K, 2] uint64 digests; None where one of them is missing."""
        if np.array_equal(self.digests, digests):
            return replace(self, is_new=False, positions=np.arange(len(digests)))
        positions = find_first_equal(np.concatenate([self.digests, digests]))[len(self.digests) :]
        if (positions >= len(self.digests)).any():
            return None
        return replace(self, is_new=False, positions=positions)

    def read(self, row_positions: np.ndarray, padded_length: int) -> Tensor:
        """Return [rows, padded_length, D] states on the device; padding repeats the last token's.

        Nothing waits for the device.
        """
        rows = torch.from_numpy(self.positions[row_positions])
        if self.states.device.type == "cuda":
            rows = rows.pin_memory()
        rows = rows.to(self.states.device, non_blocking=True)
        last_tokens = (self.row_lengths[rows] - 1)[:, None]
        tokens = torch.arange(padded_length, device=self.states.device).minimum(last_tokens)  # [rows, padded_length]
        return self.states[self.row_starts[rows][:, None] + tokens]


@dataclass
class DeviceStateStore:
    """The states that a run keeps in a GPU's memory, for all ensembles that it attaches one after the other."""

    _kept_states: list[tuple[StateKind, DeviceStates]] = field(default_factory=list)

    def add(self, kind: StateKind, states: DeviceStates) -> None:
        """Keep the states of a set of rows."""
        self._kept_states.append((kind, states))

    def find(self, kind: StateKind, examples: Examples) -> DeviceStates | None:
        """Return the states of these rows of one sequence each, kept with others perhaps; None where one is missing."""
        candidates = [states for kept_kind, states in self._kept_states if kept_kind == kind]
        if not candidates:
            return None
        digests = digest_rows(examples)
        wanted_states = (states.find(digests) for states in candidates)
        return next((states for states in wanted_states if states is not None), None)

    def clear(self) -> None:
        """Give the memory back, also that of states which a trainer, its module and its data refer to in a circle."""
        self._kept_states.clear()
        gc.collect()
        torch.cuda.empty_cache()


def keeps_on_device(prefix: FrozenPrefix, examples: Examples, device: torch.device, batches: BatchSettings) -> bool:
    """Return True where the states of these rows are kept in the memory of the device, and not in the cache.

    That is on a single GPU with room for them beside its work. Several share the cache, so that each computes a part
    of the rows; and processes that prepare batches cannot read a GPU's memory.
    """
    if device.type != "cuda" or world_size() > 1 or batches.workers > 0:
        return False
    unused_bytes = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free_bytes = torch.cuda.mem_get_info(device)[0] + unused_bytes
    return count_prefix_bytes(prefix, examples) <= min(FREE_MEMORY_SHARE * free_bytes, batches.prefix_limit_bytes)
