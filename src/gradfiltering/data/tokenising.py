"""Tokenising in shards: by one process or several, each shard stored as soon as it is done."""

import logging
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, concatenate_datasets

from gradfiltering.distributed.process_group import run_on_rank_zero
from gradfiltering.errors import UserError
from gradfiltering.options import PositiveInt, options
from gradfiltering.runs.cache import Cache, CacheKey
from gradfiltering.runs.files import link_file
from gradfiltering.runs.logs import announce
from gradfiltering.runs.progress import progress_bar
from gradfiltering.runs.run_displays import ProgressBar

TOKENS_KIND, SHARDS_KIND = "tokens", "token_shards"
TOKENS_FILE = "tokens.arrow"
SHARD_FILES = "tokens-*.arrow"
ROWS_PER_SHARD = 50_000  # what an interruption costs at most, for each process
ROWS_PER_BATCH = 1000
FEWEST_ROWS_FOR_PROCESSES = 2 * ROWS_PER_SHARD  # below, starting processes takes longer than they save
PARENT_CHECK_SECONDS = 1.0
MOST_PROCESSES = 16  # of `auto`; each holds about a quarter of a gigabyte

Batch: TypeAlias = dict[str, list[Any]]
EncodeBatch: TypeAlias = Callable[[Batch, list[int]], Batch]
EncodeTable: TypeAlias = Callable[[pa.Table, Sequence[int]], pa.Table]


@dataclass(frozen=True)
class ReusableTokens:
    """Tokens of the same rows, made for another length, which the cache may hold and which most rows share.

    Attributes:
        cache_key: of these tokens.
        mark_same: a batch of B rows of them -> [B] bool, True where a row's tokens are those that are wanted.
    """

    cache_key: CacheKey
    mark_same: Callable[[pa.Table], np.ndarray]


@options
class TokenisingSettings:
    """Processes that tokenise rows; no result depends on them.

    Attributes:
        processes: number that tokenise at the same time; `auto` for this process alone below 100,000 rows, and for one
            on each processor, at most 16, from there on.
    """

    processes: PositiveInt | Literal["auto"] = "auto"

    def count_processes(self, row_count: int) -> int:
        """Return the number of processes for so many rows; never more than there are shards."""
        shard_count = max(1, -(-row_count // ROWS_PER_SHARD))
        if self.processes != "auto":
            return min(self.processes, shard_count)
        if row_count < FEWEST_ROWS_FOR_PROCESSES:
            return 1
        from joblib import cpu_count

        processors: int = cpu_count()
        return min(processors, MOST_PROCESSES, shard_count)


def tokenize_table(
    rows: Dataset,
    encode_batch: EncodeBatch,
    features: Features,
    cache: Cache,
    cache_key: CacheKey,
    settings: TokenisingSettings,
    reusable: ReusableTokens | None = None,
) -> Dataset:
    """Tokenise all rows, or take the result from the cache.

    More than `ROWS_PER_SHARD` rows are tokenised in shards of so many. A finished shard is stored, so that a run that
    was interrupted goes on with the others. Rows, their order and the key depend on neither shards nor processes.

    Args:
        rows: of a dataset.
        encode_batch: columns and positions of some rows -> the columns of `features`; picklable, and each row's result
            depends on that row alone.
        features: columns of the result.
        cache: of results; only rank zero computes.
        cache_key: everything that the result depends on.
        settings: number of processes.
        reusable: tokens that are taken over where they are the same; None for none.

    Returns:
        One row for each row, memory-mapped.

    Raises:
        UserError: a process was killed, or the tokenizer cannot be handed to another process.
    """
    shards = [
        range(start, min(start + ROWS_PER_SHARD, len(rows))) for start in range(0, max(1, len(rows)), ROWS_PER_SHARD)
    ]
    shard_keys = [{**cache_key, "shard": [shard.start, shard.stop]} for shard in shards]

    def build(folder: Path) -> None:
        encode: EncodeTable = partial(_encode_table, encode_batch=encode_batch, features=features)
        stored_tokens = None if reusable is None else cache.find(TOKENS_KIND, reusable.cache_key)
        if reusable is not None and stored_tokens is not None:
            stored_rows = open_tokens(stored_tokens.path).with_format("arrow")
            encode = partial(_encode_differing, encode=encode, stored_rows=stored_rows, mark_same=reusable.mark_same)
        if len(shards) == 1:
            with progress_bar("tokenising", len(rows)) as bar:
                _write_shard(folder, shards[0], rows, encode, features, bar)
            return
        _complete_shards(rows, shards, shard_keys, encode, features, cache, settings)
        for shard_number, shard_key in enumerate(shard_keys):
            stored_shard = cache.find(SHARDS_KIND, shard_key)
            assert stored_shard is not None, f"shard {shard_number} was deleted while others were tokenised"
            link_file(stored_shard.path / TOKENS_FILE, folder / SHARD_FILES.replace("*", f"{shard_number:05d}"))

    def delete_shards() -> None:
        for shard_key in shard_keys:
            cache.delete(SHARDS_KIND, shard_key)

    cached_result = cache.get_or_compute_on_rank_zero(TOKENS_KIND, cache_key, build)
    if len(shards) > 1:
        run_on_rank_zero(delete_shards)
    return open_tokens(cached_result.path)


def open_tokens(folder: Path) -> Dataset:
    """Open tokenised rows of a folder of the cache, memory-mapped; they are one file, or one for each shard."""
    shard_paths = sorted(folder.glob(SHARD_FILES)) or [folder / TOKENS_FILE]
    return concatenate_datasets([Dataset.from_file(str(shard_path)) for shard_path in shard_paths])


def _complete_shards(
    rows: Dataset,
    shards: Sequence[range],
    shard_keys: Sequence[CacheKey],
    encode: EncodeTable,
    features: Features,
    cache: Cache,
    settings: TokenisingSettings,
) -> None:
    """Tokenise the shards that the cache does not hold."""
    open_shards = [
        (shard, shard_key)
        for shard, shard_key in zip(shards, shard_keys, strict=True)
        if cache.find(SHARDS_KIND, shard_key) is None
    ]
    open_rows = sum(len(shard) for shard, _ in open_shards)
    if open_rows < len(rows):
        announce(f"{len(rows) - open_rows:,} of {len(rows):,} rows were tokenised before an interruption")
    process_count = min(settings.count_processes(len(rows)), max(1, len(open_shards)))
    with progress_bar("tokenising", open_rows) as bar:
        if process_count == 1:
            for shard, shard_key in open_shards:
                write_shard = partial(_write_shard, shard=shard, rows=rows, encode=encode, features=features, bar=bar)
                cache.commit(SHARDS_KIND, shard_key, write_shard)
            return
        for shard_number, encoded_stream, seconds in _encode_in_processes(
            rows, [shard for shard, _ in open_shards], encode, features, process_count
        ):
            shard, shard_key = open_shards[shard_number]
            cache.commit(SHARDS_KIND, shard_key, partial(_write_stream, encoded_stream=encoded_stream), seconds)
            bar.advance(len(shard))


def _write_shard(
    folder: Path, shard: range, rows: Dataset, encode: EncodeTable, features: Features, bar: ProgressBar
) -> None:
    arrow_rows = rows.with_format("arrow")

    def encode_batches() -> Iterator[pa.Table]:
        for start in range(shard.start, shard.stop, ROWS_PER_BATCH):
            stop = min(start + ROWS_PER_BATCH, shard.stop)
            yield encode(arrow_rows[start:stop], range(start, stop))
            bar.advance(stop - start)

    with pa.OSFile(str(folder / TOKENS_FILE), "wb") as sink:
        _write_tables(sink, features.arrow_schema, encode_batches())


def _write_stream(folder: Path, encoded_stream: bytes) -> None:
    (folder / TOKENS_FILE).write_bytes(encoded_stream)


def _encode_table(rows: pa.Table, positions: Sequence[int], encode_batch: EncodeBatch, features: Features) -> pa.Table:
    return pa.Table.from_pydict(encode_batch(rows.to_pydict(), list(positions)), features.arrow_schema)


def _encode_differing(
    rows: pa.Table,
    positions: Sequence[int],
    encode: EncodeTable,
    stored_rows: Dataset,
    mark_same: Callable[[pa.Table], np.ndarray],
) -> pa.Table:
    """Encode the rows whose stored tokens are not the wanted ones, and take over the rest."""
    stored_table = stored_rows[positions[0] : positions[-1] + 1].combine_chunks()
    differing = np.flatnonzero(~mark_same(stored_table)).tolist()
    if not differing:
        return stored_table
    encoded = encode(rows.take(differing), [positions[index] for index in differing])
    sources = np.arange(len(stored_table))
    sources[differing] = len(stored_table) + np.arange(len(differing))
    joined = pa.concat_tables([stored_table.cast(encoded.schema), encoded]).combine_chunks()
    return joined.take(sources).combine_chunks()


def _write_tables(sink: pa.NativeFile, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    with pa.ipc.new_stream(sink, schema) as writer:
        for table in tables:
            writer.write_table(table)


def _to_stream(schema: pa.Schema, tables: Iterable[pa.Table]) -> bytes:
    with pa.BufferOutputStream() as sink:
        _write_tables(sink, schema, tables)
        stream: bytes = sink.getvalue().to_pybytes()
    return stream


def _encode_in_processes(
    rows: Dataset, shards: Sequence[range], encode: EncodeTable, features: Features, process_count: int
) -> Iterator[tuple[int, bytes, float]]:
    """Tokenise shards at the same time; yield number, Arrow stream and seconds of each as it is done."""
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    arrow_rows = rows.with_format("arrow")
    try:
        pickled_encoder = pickle.dumps((encode, features))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"the tokenizer cannot be handed to other processes ({error}); tokenise by 1 process",
            owner=TokenisingSettings,
            arguments=("processes",),
        ) from error

    def list_tasks() -> Iterator[Any]:
        for shard_number, shard in enumerate(shards):
            shard_rows = arrow_rows[shard.start : shard.stop]
            rows_stream = _to_stream(shard_rows.schema, [shard_rows])
            yield delayed(_encode_shard)(pickled_encoder, os.getpid(), shard_number, shard.start, rows_stream)

    parallel = Parallel(
        n_jobs=process_count,
        backend="loky",
        return_as="generator_unordered",
        pre_dispatch=process_count + 1,  # of shards that wait there is one, as each is held in memory
        batch_size=1,
    )
    try:
        yield from parallel(list_tasks())
    except TerminatedWorkerError as error:
        raise UserError(
            "a process that tokenises rows was killed, perhaps for want of memory; choose fewer processes. Shards that "
            "are done are stored",
            owner=TokenisingSettings,
            arguments=("processes",),
        ) from error
    finally:
        get_reusable_executor().shutdown(wait=True, kill_workers=True)


def _encode_shard(
    pickled_encoder: bytes, first_process: int, shard_number: int, first_position: int, rows_stream: bytes
) -> tuple[int, bytes, float]:
    """Tokenise a shard in a process of its own.

    Args:
        pickled_encoder: the function that encodes some rows, and the columns of its result.
        first_process: id of the process that the run is; joblib takes that itself within jobs of its own.
        shard_number: handed back.
        first_position: of the shard's rows in the dataset.
        rows_stream: the rows as an Arrow stream.

    Returns:
        The shard's number, the tokenised rows as an Arrow stream, and seconds.
    """
    started_at = time.monotonic()
    if os.getpid() != first_process:
        _prepare_process(first_process)
    encode, features = _load_encoder(pickled_encoder)
    rows = pa.ipc.open_stream(rows_stream).read_all()

    def encode_batches() -> Iterator[pa.Table]:
        for start in range(0, len(rows), ROWS_PER_BATCH):
            batch = rows.slice(start, ROWS_PER_BATCH)
            yield encode(batch, range(first_position + start, first_position + start + len(batch)))

    encoded_stream = _to_stream(features.arrow_schema, encode_batches())
    return shard_number, encoded_stream, time.monotonic() - started_at


@lru_cache(maxsize=1)
def _prepare_process(first_process: int) -> None:
    """Make a process that does nothing else leave signals, warnings and other processors to the others.

    It ends when the first process has ended, however that ended.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first ends the others
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    logging.disable(logging.WARNING)

    def end_with_first_process() -> None:
        while os.getppid() == first_process:
            time.sleep(PARENT_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=end_with_first_process, daemon=True).start()


@lru_cache(maxsize=1)
def _load_encoder(pickled_encoder: bytes) -> tuple[EncodeTable, Features]:
    encoder: tuple[EncodeTable, Features] = pickle.loads(pickled_encoder)
    return encoder
