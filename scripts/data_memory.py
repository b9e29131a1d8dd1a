"""Memory and time of the data stage on many rows: reading, checking, hashing, tokenising.

python scripts/data_memory.py --rows 200000 1000000 2000000 --folder /tmp/many
python scripts/data_memory.py --rows 2000000 --folder /tmp/many --processes 1 --tokenizer folder/of/gpt2

Own memory is what a process holds for itself; pages of memory-mapped files, which the system may drop at any time, are
counted in resident memory alone. Both are sampled every 0.2 s in this process and in those that it starts.
"""

import argparse
import json
import resource
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import datasets
import psutil
from file_rows import load_tokenizer, read_rows

from gradfiltering.data.encoder import Encoder
from gradfiltering.data.tokenising import TokenisingSettings
from gradfiltering.runs.cache import Cache
from gradfiltering.synthetic.pretraining import train_tokenizer
from gradfiltering.synthetic.task_generator import generate_rows, prose

MIB = 2**20
DISTINCT_ROWS = 2000  # of the generated file, told apart by a number


class MemoryWatch:
    """Most memory seen of this process, of the largest of those that it started, and of all together, in bytes."""

    def __init__(self) -> None:
        self.own = self.largest_child = self.all_own = self.all_resident = 0

    def sample(self) -> None:
        own_process = psutil.Process()
        sizes = []
        for process in [own_process, *own_process.children(recursive=True)]:
            with suppress(psutil.Error):
                memory = process.memory_info()
                sizes.append((memory.rss - memory.shared, memory.rss))
        own_sizes = [own_bytes for own_bytes, _ in sizes]
        self.own = max(self.own, own_sizes[0])
        self.largest_child = max(self.largest_child, *own_sizes[1:], 0)
        self.all_own = max(self.all_own, sum(own_sizes))
        self.all_resident = max(self.all_resident, sum(resident for _, resident in sizes))


def processor_seconds() -> float:
    """User and system time of this process and of ended ones that it started."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@contextmanager
def measured(name: str, rows: int) -> Iterator[None]:
    """Print seconds, rate and the most memory of a block."""
    memory, is_over = MemoryWatch(), threading.Event()

    def watch() -> None:
        while not is_over.wait(0.2):
            memory.sample()

    watcher = threading.Thread(target=watch, daemon=True)
    started, started_processor = time.monotonic(), processor_seconds()
    memory.sample()
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()
        memory.sample()
        seconds, processor = time.monotonic() - started, processor_seconds() - started_processor
        print(
            f"{rows:,} rows, {name}: {seconds:.0f} s, {processor:.0f} processor s, {rows / seconds:,.0f} rows/s, "
            f"{rows / processor:,.0f} rows per processor s; MiB at most: own {memory.own / MIB:.0f}, largest other "
            f"process {memory.largest_child / MIB:.0f}, all {memory.all_own / MIB:.0f}, all resident "
            f"{memory.all_resident / MIB:.0f}",
            flush=True,
        )


def write_rows(path: Path, count: int) -> None:
    """Write a file of rows as long as Alpaca's are on average, no two alike."""
    distinct_rows = generate_rows(DISTINCT_ROWS, 0, "train")
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = distinct_rows[number % DISTINCT_ROWS]
            output = " ".join([row["output"]] * 8)
            file.write(json.dumps({**row, "instruction": f"{number}: {row['instruction']}", "output": output}) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each number of rows in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", required=True)
    parser.add_argument("--folder", type=Path, required=True, help="scratch folder; what is made in it is deleted")
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer; without it, that of proxy=tiny")
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--processes", type=int, help="that tokenise; without it, as many as a run would take")
    options = parser.parse_args(arguments)
    for row_count in options.rows:
        scratch = options.folder / "data_memory"
        scratch.mkdir(parents=True)
        try:
            measure(options, row_count, scratch)
        finally:
            shutil.rmtree(scratch)


def measure(options: argparse.Namespace, row_count: int, scratch: Path) -> None:
    """Measure each step of the data stage in turn."""
    datasets.config.HF_DATASETS_CACHE = scratch / "cache"
    datasets.disable_progress_bars()
    path = scratch / "rows.jsonl"
    write_rows(path, row_count)
    print(f"{row_count:,} rows, {path.stat().st_size / MIB:.0f} MiB", flush=True)
    own_tokenizer = options.tokenizer is None
    tokenizer = train_tokenizer(prose(200_000, 0), 1024) if own_tokenizer else load_tokenizer(options.tokenizer)
    with measured("read and check", row_count):
        dataset = read_rows(path, None)
    settings = TokenisingSettings(options.processes or "auto")
    encoder = Encoder(tokenizer, options.max_tokens, Cache(scratch / "store"), settings)
    with measured(f"tokenise by {settings.count_processes(row_count)} processes", row_count):
        examples = encoder.encode(dataset)
    with measured("select a tenth", row_count):
        tenth = examples.select(examples.example_ids[::10])
    print(f"{len(examples):,} examples, {examples.tokens:,} tokens, a tenth of them {tenth.tokens:,}", flush=True)


if __name__ == "__main__":
    main()
