"""Hidden states that enter the first adapted layer, computed once per row and kept in the cache."""

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradfiltering.data.batches import LengthBatches, collate
from gradfiltering.data.examples import Examples, digest_rows
from gradfiltering.data.row_duplicates import find_first_equal
from gradfiltering.distributed.process_group import gather_from_ranks, run_on_rank_zero, world_size
from gradfiltering.distributed.row_measurements import share_of_this_rank
from gradfiltering.ensembles.batch_settings import BatchSettings
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.gradients.prefix import FrozenPrefix
from gradfiltering.runs.cache import Cache, CachedResult
from gradfiltering.runs.logs import announce
from gradfiltering.runs.mapped_arrays import map_large_array
from gradfiltering.runs.progress import track
from gradfiltering.runs.sizes import format_bytes

PREFIX_VERSION = 2  # raise it when the same rows would have other states
FROZEN_PREFIX = "frozen_prefix"  # kind of result
INDEX_FILE, LENGTHS_FILE, DIGESTS_FILE = "index.json", "lengths.npy", "digests.npy"
SHARD_BYTES = 128 << 20
FREE_DISK_SHARE = 0.9  # of the free space, at most so much is taken
RAW_TYPES = {torch.float64: "<f8", torch.float32: "<f4", torch.bfloat16: "<i2", torch.float16: "<i2"}


@dataclass(frozen=True)
class PrefixStates:
    """States of a set of rows in the cache, read from the disk as needed.

    Attributes:
        folder: of the cached result.
        dtype: of the states.
        width: D.
        lengths: [N] tokens of each row.
        first_rows: position of the first row of each shard.
        is_new: False where an earlier run or pass made them.
        seconds: how long they took to make.
        positions: [K] of the rows that are asked for among those that are kept.
    """

    folder: Path
    dtype: torch.dtype
    width: int
    lengths: np.ndarray
    first_rows: np.ndarray
    is_new: bool
    seconds: float
    positions: np.ndarray
    _shards: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the mapped files: a process that loads batches maps them for itself."""
        return {**vars(self), "_shards": {}}

    @classmethod
    def open(cls, cached_result: CachedResult, digests: np.ndarray) -> "PrefixStates":
        """Open what `keep_prefix_states` made.

        Args:
            cached_result: states of these rows, perhaps among others.
            digests: [K, 2] uint64, of the rows.
        """
        folder = cached_result.path
        positions = _find_rows(cached_result, digests)
        assert positions is not None, "states of other rows"
        index = json.loads((folder / INDEX_FILE).read_text("utf-8"))
        return cls(
            folder=folder,
            dtype=getattr(torch, index["dtype"]),
            width=index["width"],
            lengths=np.load(folder / LENGTHS_FILE, mmap_mode="r"),
            first_rows=np.asarray(index["first_rows"]),
            is_new=not cached_result.reused,
            seconds=cached_result.seconds,
            positions=map_large_array(positions),
        )

    def read(self, row_positions: np.ndarray, padded_length: int) -> Tensor:
        """Return [rows, padded_length, D] states; padding repeats the last token's, so that it is finite."""
        raw_type = np.dtype(RAW_TYPES[self.dtype])
        states = np.empty((len(row_positions), padded_length, self.width), raw_type)
        rows = self.positions[row_positions]
        shard_numbers = np.searchsorted(self.first_rows, rows, side="right") - 1
        for row_states, row, shard_number in zip(states, rows, shard_numbers, strict=True):
            first_row, row_length = self.first_rows[shard_number], self.lengths[row]
            row_start = int(self.lengths[first_row:row].sum(dtype=np.int64))  # in tokens of the shard
            shard = self._map_shard(int(shard_number))
            row_states[:row_length] = shard[row_start : row_start + row_length]
            row_states[row_length:] = row_states[row_length - 1]
        return torch.from_numpy(states).view(self.dtype)

    def _map_shard(self, shard_number: int) -> np.ndarray:
        """Map a shard into memory, [tokens, D]."""
        if shard_number not in self._shards:
            shard_file = self.folder / _shard_name(shard_number)
            shard = np.memmap(shard_file, RAW_TYPES[self.dtype], mode="r").reshape(-1, self.width)
            self._shards[shard_number] = shard
        return self._shards[shard_number]


def keep_prefix_states(
    cache: Cache, engine: FusedEngine, examples: Examples, model_hash: str, pad_id: int, batches: BatchSettings
) -> PrefixStates | None:
    """Return the states of all rows from the cache; where it lacks them all ranks compute their share.

    States of more rows serve as well, such as those of the rows that a part was drawn from.

    Args:
        cache: of this run and others.
        engine: on the device that computes, with a frozen prefix.
        examples: the rows; each sequence of a preference row has states of its own (`Examples.sequences`).
        model_hash: digest of the base model.
        pad_id: token id for padding.
        batches: division of work, and the most that is kept.

    Returns:
        None where the states take more than may be kept, or than fits on the disk.
    """
    prefix = engine.prefix
    assert prefix is not None and prefix.state_dtype is not None, "the engine was not checked, or has no frozen prefix"
    examples = examples.sequences()
    digests = digest_rows(examples)
    shared_key, key = _prefix_keys(prefix, digests, model_hash)
    kept_states = _find_states(cache, key, shared_key, digests)
    if kept_states is not None:
        return kept_states
    byte_count = count_prefix_bytes(prefix, examples)
    description = f"frozen layers {prefix.layer_range} of {len(examples)} rows"
    obstacle = run_on_rank_zero(_describe_obstacle, cache.folder, byte_count, batches.prefix_limit_bytes)
    if obstacle:
        announce(f"{description}: {format_bytes(byte_count)}, {obstacle}; they are computed anew for each batch")
        return None
    announce(f"{description}: {format_bytes(byte_count)}")
    batch_tokens = batches.forward_tokens(engine.model.device)
    cached_result = cache.get_or_compute(
        FROZEN_PREFIX, key, _write_states, engine, examples, pad_id, digests, batch_tokens
    )
    return PrefixStates.open(cached_result, digests)


def has_prefix_states(cache: Cache, prefix: FrozenPrefix, examples: Examples, model_hash: str) -> bool:
    """Return True where the cache has the states of these rows, or of more."""
    digests = digest_rows(examples.sequences())
    shared_key, key = _prefix_keys(prefix, digests, model_hash)
    return _find_states(cache, key, shared_key, digests) is not None


def count_prefix_bytes(prefix: FrozenPrefix, examples: Examples) -> int:
    """Return the bytes that the states of a set of rows take, without padding."""
    assert prefix.state_dtype is not None
    return examples.tokens * prefix.state_width * prefix.state_dtype.itemsize


def _prefix_keys(prefix: FrozenPrefix, digests: np.ndarray, model_hash: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the part of the key that all sets of rows share, and the key of these rows."""
    assert prefix.state_dtype is not None
    shared_key = {
        "code": PREFIX_VERSION,
        "base_model": model_hash,
        "first_layer": prefix.first_layer,
        "precision": _name_type(prefix.state_dtype),
    }
    return shared_key, {**shared_key, "tokens": hashlib.sha256(digests.data).hexdigest()}


def _find_states(
    cache: Cache, key: dict[str, Any], shared_key: dict[str, Any], digests: np.ndarray
) -> PrefixStates | None:
    """Find the states of these rows, or of more."""
    kept_keys = [
        kept_key
        for kept_key in cache.list_keys(FROZEN_PREFIX)
        if {name: kept_key.get(name) for name in shared_key} == shared_key
    ]
    for kept_key in [key, *(kept_key for kept_key in kept_keys if kept_key != key)]:
        # Many gigabytes are read to check all files, so only where the rows are there.
        row_list = cache.find(FROZEN_PREFIX, kept_key, checked_files=[DIGESTS_FILE])
        if row_list is None or _find_rows(row_list, digests) is None:
            continue
        cached_result = cache.find(FROZEN_PREFIX, kept_key)
        if cached_result is not None:
            return PrefixStates.open(cached_result, digests)
    return None


def _find_rows(cached_result: CachedResult, digests: np.ndarray) -> np.ndarray | None:
    """Return the positions of rows among those that are kept; None where one is missing."""
    kept_digests = np.load(cached_result.path / DIGESTS_FILE).view(np.uint64)  # [N, 2], [N, 16] bytes in the file
    if np.array_equal(kept_digests, digests):
        return np.arange(len(digests))
    positions = find_first_equal(np.concatenate([kept_digests, digests]))[len(kept_digests) :]
    return positions if (positions < len(kept_digests)).all() else None


def _write_states(
    rank_folder: Path, engine: FusedEngine, examples: Examples, pad_id: int, digests: np.ndarray, batch_tokens: int
) -> None:
    """Write all shards into the folder of rank zero, each rank those of its share."""
    prefix = engine.prefix
    assert prefix is not None and prefix.state_dtype is not None
    result_folder = Path(gather_from_ranks(str(rank_folder))[0])
    token_bytes = prefix.state_width * prefix.state_dtype.itemsize
    first_rows = _cut_shards(examples.lengths, max(world_size(), -(-examples.tokens * token_bytes // SHARD_BYTES)))
    shard_rows = np.split(np.arange(len(examples)), first_rows[1:])
    own_shards = share_of_this_rank()(range(len(shard_rows)))
    pieces = [
        (shard_number, rows)
        for shard_number in own_shards
        for rows in LengthBatches(examples, batch_tokens, pad_id, shard_rows[shard_number]).cuts
    ]
    raw_type = np.dtype(RAW_TYPES[prefix.state_dtype])
    own_rows = sum(len(rows) for _, rows in pieces)
    description = f"computing the frozen layers {prefix.layer_range} once"
    tracked_pieces = track(pieces, description, own_rows, amount_of=lambda piece: len(piece[1]))
    for shard_number, shard_pieces in groupby(tracked_pieces, key=itemgetter(0)):
        lengths = examples.lengths[shard_rows[shard_number]].astype(np.int64)
        starts = dict(zip(shard_rows[shard_number].tolist(), (np.cumsum(lengths) - lengths).tolist(), strict=True))
        shard = np.empty((lengths.sum(), prefix.state_width), raw_type)
        for _, rows in shard_pieces:
            batch = collate(examples.read_rows(rows), pad_id, (len(rows),))
            states = engine.compute_prefix_states(prefix, batch.input_ids.to(engine.model.device)).cpu().contiguous()
            raw_states = states.view(torch.int16) if states.element_size() == 2 else states
            for row, row_states in zip(rows.tolist(), raw_states.numpy(), strict=True):
                row_length = int(examples.lengths[row])
                shard[starts[row] : starts[row] + row_length] = row_states[:row_length]
        shard.tofile(result_folder / _shard_name(shard_number))
    gather_from_ranks(None)  # all shards are written
    np.save(rank_folder / LENGTHS_FILE, examples.lengths)
    np.save(rank_folder / DIGESTS_FILE, digests.view(np.uint8))
    index: dict[str, Any] = {
        "dtype": _name_type(prefix.state_dtype),
        "width": prefix.state_width,
        "first_rows": first_rows.tolist(),
    }
    (rank_folder / INDEX_FILE).write_text(json.dumps(index), "utf-8")


def _cut_shards(lengths: np.ndarray, shard_count: int) -> np.ndarray:
    """Return the first row of each of so many shards, or fewer, of about as many tokens each."""
    row_ends = np.cumsum(lengths, dtype=np.int64)
    ideal_starts = np.arange(shard_count) * int(row_ends[-1]) / shard_count
    return np.unique(np.searchsorted(row_ends, ideal_starts, side="right"))


def _describe_obstacle(cache_folder: Path, byte_count: int, most_bytes: int) -> str:
    """Say why so much cannot be kept; empty where it can."""
    if byte_count > most_bytes:
        return f"more than the {format_bytes(most_bytes)} that may be kept"
    existing_folder = next(
        folder for folder in [cache_folder.absolute(), *cache_folder.absolute().parents] if folder.is_dir()
    )
    free_bytes = shutil.disk_usage(existing_folder).free
    if byte_count > FREE_DISK_SHARE * free_bytes:
        return f"with {format_bytes(free_bytes)} free in {cache_folder}"
    return ""


def _name_type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shard_name(shard_number: int) -> str:
    return f"states-{shard_number:03d}.bin"
