"""Time and memory of scoring, selecting and showing rows in large numbers, from files.

python scripts/bench_scale.py log --rows 10000000 --members 5 --folder /tmp/scale
python scripts/bench_scale.py scored --rows 100000000 --folder /tmp/scale
python scripts/bench_scale.py online --rows 1000 100000 1000000 --folder /tmp/scale
python scripts/bench_scale.py hygiene --rows 50000 500000 --folder /tmp/scale --alpaca alpaca_data.json

`log` writes a synthetic gradient log and lets `gradfiltering select` score it and select a tenth, by `top` with the
page and by `stratified` without. `scored` writes rows with a score and selects a tenth of them. `online` trains one
member for an epoch, recording its gradients. `hygiene` looks for signs of poor rows among Alpaca's rows, repeated with
changes. What is measured runs in a process of its own: seconds and peak memory of each stage, and of the whole process
(the operating system's own count).
"""

import argparse
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradfiltering.runs.gradient_log import PARQUET_FILE, PIECE_ROWS, SCHEMA, partition_folder

MIB, GIB = 2**20, 2**30
EPOCHS = (1, 2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each number of rows in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "measurement", choices=["log", "scored", "select-scored", "online", "train-online", "hygiene", "check-hygiene"]
    )
    parser.add_argument("--rows", type=int, nargs="+", required=True)
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--folder", type=Path, required=True, help="scratch folder; its files serve again")
    parser.add_argument("--alpaca", type=Path, help="alpaca_data.json, for hygiene")
    options = parser.parse_args(arguments)
    if options.measurement == "hygiene" and options.alpaca is None:
        parser.error("hygiene needs --alpaca alpaca_data.json")
    for row_count in options.rows:
        if options.measurement == "log":
            measure_log(options.folder / f"log-{row_count}", row_count, options.members)
        elif options.measurement == "scored":
            measure_scored(options.folder / f"scored-{row_count}.parquet", row_count)
        elif options.measurement == "online":
            command = [sys.executable, __file__, "train-online", "--rows", str(row_count), "--folder", options.folder]
            print(f"{row_count:,} rows: {run_measured([*map(str, command)])}", flush=True)
        elif options.measurement == "train-online":
            train_online(options.folder / f"online-{row_count}", row_count)
        elif options.measurement == "hygiene":
            rows_file = options.folder / f"alpaca-{row_count}.jsonl"
            if not rows_file.is_file():
                write_changed_rows(rows_file, row_count, options.alpaca)
            command = [sys.executable, __file__, "check-hygiene", "--rows", str(row_count), "--folder", options.folder]
            print(f"{row_count:,} rows: {run_measured([*map(str, command)])}", flush=True)
        elif options.measurement == "check-hygiene":
            check_rows_hygiene(options.folder, row_count)
        else:
            select_scored(options.folder / f"scored-{row_count}.parquet", row_count)


def measure_log(run_folder: Path, row_count: int, members: int) -> None:
    """Select from a synthetic gradient log by the command that users have."""
    if not (run_folder / "gradient_log").is_dir():
        write_log(run_folder / "gradient_log", row_count, members)
    for selector, with_page in (("top", "true"), ("stratified", "false")):
        output_folder = run_folder / selector
        shutil.rmtree(output_folder, ignore_errors=True)
        command = [sys.executable, "-m", "gradfiltering", "select", run_folder, output_folder, f"selector={selector}"]
        costs = run_measured([*map(str, command), f"report.page={with_page}", "report.figures=false"])
        summary = json.loads((output_folder / "summary.json").read_text("utf-8"))
        for stage_name, stage in summary["cost"].items():
            print(
                f"{row_count:,} rows, {selector}: {stage_name} {stage['seconds']:.0f} s, "
                f"at most {stage['peak_bytes'] / MIB:,.0f} MiB"
            )
        print(f"{row_count:,} rows, {selector}: {costs}", flush=True)


def measure_scored(scored_file: Path, row_count: int) -> None:
    """Select a tenth of rows that have a score."""
    if not scored_file.is_file():
        write_scored_rows(scored_file, row_count)
    command = [sys.executable, __file__, "select-scored", "--rows", str(row_count), "--folder", str(scored_file.parent)]
    print(f"{row_count:,} scored rows: {run_measured(command)}", flush=True)


def select_scored(scored_file: Path, row_count: int) -> None:
    from gradfiltering.selectors.top import TopSelector
    from gradfiltering.shards.database import open_database
    from gradfiltering.shards.selection import select_stored_rows

    started_at = time.monotonic()
    with open_database(scored_file.parent) as connection:
        subset_file = scored_file.with_name("subset.parquet")
        selection = select_stored_rows(TopSelector(0.1), connection, scored_file, row_count, subset_file)
    print(f"{selection.row_count:,} rows selected in {time.monotonic() - started_at:.0f} s", flush=True)


def train_online(folder: Path, row_count: int) -> None:
    """Train one member of a tiny model for an epoch that records its gradients, and print the memory it took."""
    from functools import partial

    import lightning as L
    from datasets import Dataset

    from gradfiltering.data.examples import Examples, read_numbers
    from gradfiltering.data.length_buckets import LengthBuckets
    from gradfiltering.ensembles.data_module import EnsembleDataModule
    from gradfiltering.ensembles.lora_ensemble import LoraEnsemble
    from gradfiltering.ensembles.member_cache import MemberCache
    from gradfiltering.ensembles.snapshots import Timeline
    from gradfiltering.ensembles.stack_state import StackState
    from gradfiltering.ensembles.stack_training import StackTrainer
    from gradfiltering.gradients.fused import FusedEngine
    from gradfiltering.models.lora import LoraSettings, initial_adapters
    from gradfiltering.models.objectives import ResponseNLL
    from gradfiltering.runs.cache import Cache
    from gradfiltering.runs.memory import keep_freed_memory, limit_kept_programs
    from gradfiltering.synthetic.pretraining import new_model, train_tokenizer

    keep_freed_memory()  # as a run does
    limit_kept_programs()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    table = Dataset.from_file(str(write_tokens(folder / "tokens.arrow", row_count)))
    row_ids, lengths = read_numbers(table, "example_id", np.int64), read_numbers(table, "tokens", np.int32)
    response_tokens = read_numbers(table, "response_tokens", np.int32)
    examples = Examples(table, row_ids, lengths, response_tokens, 0, 0, 16, [])
    tokenizer = train_tokenizer(["Say it is. 0 1 2 3 4 5 6 7 8 9"], VOCABULARY)
    shape = {"architecture": "gpt2", "layers": 1, "heads": 2, "width": 16, "context": 16, "vocabulary": VOCABULARY}
    lora = LoraSettings(rank=2, alpha=4, target_modules="all-linear", init_b_std=0.05)
    model = lora.attach(new_model(shape, tokenizer, 0).eval().requires_grad_(False))
    settings = LoraEnsemble(
        m=1, batch_size=512, lr=1e-3, warmup_steps=3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, clip_norm=None,
        collect="online", bucket_batches=8, trajectory_steps=10, checkpoint_minutes=10, lora=lora,
    )  # fmt: skip
    buckets = LengthBuckets.of(lengths, settings.batch_size, settings.bucket_batches, 0)
    member_cache = MemberCache(
        Cache(folder / "cache"), settings, {"rows": row_count}, Timeline(buckets.steps_per_epoch)
    )
    trainer = partial(
        L.Trainer, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    engine = FusedEngine(model, ResponseNLL(), 8192)
    state = StackState(initial_adapters(model, lora, settings.member_ids, 0), {}, 0)
    stretches = member_cache.timeline.list_stretches(0, 1)
    data = EnsembleDataModule(examples, settings.member_ids, buckets, 0, 0, stretches)
    with anonymous_memory_printed():
        StackTrainer(settings, engine, member_cache, model, trainer).train(state, data)
    (log_file,) = (folder / "cache").rglob("online.parquet")
    assert pq.read_metadata(log_file).num_rows == row_count


PROMPT_TOKENS, VOCABULARY = 2, 300


def write_tokens(arrow_file: Path, row_count: int) -> Path:
    """Write rows of 4 to 12 tokens in the columns that tokenising leaves."""
    schema = pa.schema(
        [
            ("example_id", pa.int64()), ("input_ids", pa.list_(pa.int32())), ("supervised", pa.list_(pa.int32())),
            ("tokens", pa.int32()), ("response_tokens", pa.int32()), ("lost_tokens", pa.int32()),
        ]
    )  # fmt: skip
    with pa.OSFile(str(arrow_file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for first_row in range(0, row_count, 1000):
            rows = min(1000, row_count - first_row)
            rng = np.random.default_rng(first_row)
            lengths = rng.integers(4, 13, rows)
            token_ids = np.split(rng.integers(0, VOCABULARY, lengths.sum()), np.cumsum(lengths)[:-1])
            spans = [[PROMPT_TOKENS, int(length)] for length in lengths]
            ids = np.arange(first_row, first_row + rows)
            columns = [ids, list(token_ids), spans, lengths, lengths - PROMPT_TOKENS, np.zeros(rows)]
            arrays = [pa.array(column).cast(field.type) for column, field in zip(columns, schema, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
    return arrow_file


@contextmanager
def anonymous_memory_printed() -> Iterator[None]:
    """Print the memory that no file stands behind, before the block and at most, sampled every 50 ms."""

    def anonymous_mib() -> float:
        anonymous_line = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"))
        assert anonymous_line is not None
        return int(anonymous_line[1]) / 1024

    before, ended = anonymous_mib(), threading.Event()
    samples = [before]

    def sample() -> None:
        while not ended.wait(0.05):
            samples.append(anonymous_mib())

    watcher = threading.Thread(target=sample, daemon=True)
    watcher.start()
    yield
    ended.set()
    watcher.join()
    print(f"anonymous memory: {before:.0f} MiB before, {max(samples):.0f} MiB at most", flush=True)


def run_measured(command: Sequence[str]) -> str:
    """Run a command, and return what it took in words."""
    started_at = time.monotonic()
    process_id = os.spawnv(os.P_NOWAIT, command[0], list(command))
    _, status, usage = os.wait4(process_id, 0)
    if status:
        sys.exit(f"{' '.join(command)} ended with status {os.waitstatus_to_exitcode(status)}")
    return (
        f"{time.monotonic() - started_at:.0f} s in all ({usage.ru_utime + usage.ru_stime:.0f} s of processor time), "
        f"at most {usage.ru_maxrss * 1024 / GIB:.2f} GiB"
    )


def write_log(log_folder: Path, row_count: int, members: int) -> None:
    """Write a log of norms that fall for most rows, on which the members agree more or less."""
    part_folder = log_folder.with_suffix(".part")
    for epoch in EPOCHS:
        for member in range(members):
            parquet_file = partition_folder(part_folder, member, epoch) / PARQUET_FILE
            parquet_file.parent.mkdir(parents=True, exist_ok=True)
            with pq.ParquetWriter(parquet_file, SCHEMA, use_dictionary=False) as writer:
                for first_row in range(0, row_count, PIECE_ROWS):
                    writer.write_table(draw_piece(first_row, min(PIECE_ROWS, row_count - first_row), member, epoch))
    part_folder.rename(log_folder)


def draw_piece(first_row: int, row_count: int, member: int, epoch: int) -> pa.Table:
    rows = np.random.default_rng(first_row)  # what all members and epochs share
    own = np.random.default_rng([first_row, member, epoch])
    tokens = 1 + (60 * rows.standard_exponential(row_count, np.float32)).astype(np.int32)
    row_norm = (1 + rows.standard_exponential(row_count, np.float32)) / np.sqrt(tokens)
    late_share = 0.9 + 0.1 * rows.standard_normal(row_count, np.float32) if epoch == EPOCHS[-1] else 1.0
    own_share = 1 + 0.1 * own.standard_normal(row_count, np.float32)
    norm, loss = row_norm * late_share * own_share, 2.0 * late_share * own_share
    columns = [np.arange(first_row, first_row + row_count), np.abs(norm).astype("f4"), loss.astype("f4"), tokens]
    return pa.table(columns, schema=SCHEMA)


def check_rows_hygiene(folder: Path, row_count: int) -> None:
    """Look for signs of poor rows, and print how many show them and the memory it took."""
    import datasets
    from file_rows import read_rows

    from gradfiltering.data.row_hygiene import check_hygiene
    from gradfiltering.runs.cache import Cache

    work_folder = folder / f"hygiene-{row_count}"
    shutil.rmtree(work_folder, ignore_errors=True)
    datasets.config.HF_DATASETS_CACHE = work_folder / "datasets"
    dataset = read_rows(folder / f"alpaca-{row_count}.jsonl", None)
    processor_before = time.process_time()
    with anonymous_memory_printed():
        hygiene = check_hygiene(dataset, [], Cache(work_folder / "cache"))
    print(f"{time.process_time() - processor_before:.0f} s of processor time, {hygiene.counts}", flush=True)
    shutil.rmtree(work_folder)


CHANGED_WORDS, UNCHANGED_ROWS = 0.3, 0.02


def write_changed_rows(rows_file: Path, row_count: int, alpaca_file: Path) -> None:
    """Write Alpaca's rows over and over; in all but a few, words are replaced by words of other rows."""
    rows_file.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(alpaca_file.read_text("utf-8"))
    vocabulary = np.array(" ".join(row["output"] for row in rows[:5000]).split())
    rng = np.random.default_rng(0)

    def change(text: str) -> str:
        words = np.array(text.split(" "), dtype=object)
        is_changed = rng.random(len(words)) < CHANGED_WORDS
        words[is_changed] = rng.choice(vocabulary, is_changed.sum())
        return " ".join(words)

    with rows_file.open("w", encoding="utf-8") as file:
        for number in range(row_count):
            row = rows[number % len(rows)]
            if number >= len(rows) and rng.random() >= UNCHANGED_ROWS:
                row = {name: change(value) for name, value in row.items()}
            file.write(json.dumps(row) + "\n")


def write_scored_rows(scored_file: Path, row_count: int) -> None:
    scored_file.parent.mkdir(parents=True, exist_ok=True)
    part_file = scored_file.with_suffix(".part")
    schema = pa.schema([("example_id", pa.int64()), ("score", pa.float64())])
    with pq.ParquetWriter(part_file, schema, use_dictionary=False) as writer:
        for first_row in range(0, row_count, PIECE_ROWS):
            piece_rows = min(PIECE_ROWS, row_count - first_row)
            scores = np.random.default_rng(first_row).standard_cauchy(piece_rows)
            writer.write_table(pa.table([np.arange(first_row, first_row + piece_rows), scores], schema=schema))
    part_file.rename(scored_file)


if __name__ == "__main__":
    main()
