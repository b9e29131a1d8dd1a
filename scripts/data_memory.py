"""Memory and time of the data stage on many rows: reading, checking, hashing, tokenising.

python scripts/data_memory.py --rows 2000000 --folder /tmp/many
python scripts/data_memory.py --rows 2000000 --folder /tmp/many --tokenizer folder/of/gpt2

Anonymous memory is what the process holds for itself; pages of memory-mapped files, which the system may drop at any
time, are not counted.
"""

import argparse
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
from transformers import AutoTokenizer, GPT2TokenizerFast

from gradfiltering.data.examples import Encoder
from gradfiltering.data.schemas import Columns
from gradfiltering.data.sources import FileSource, Heldout
from gradfiltering.runs.cache import Cache
from gradfiltering.synthetic.planted_defects import PlantedDefects
from gradfiltering.synthetic.pretraining import train_tokenizer
from gradfiltering.synthetic.task_generator import generate_rows, prose

MIB = 2**20
DISTINCT_ROWS = 2000  # of the generated file, told apart by a number


def anonymous_bytes() -> int:
    """Memory of this process that no file stands behind (Linux)."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@contextmanager
def measured(name: str) -> Iterator[None]:
    """Prints seconds and the most anonymous memory of a block, sampled every 50 ms."""
    before, peak, done = anonymous_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], anonymous_bytes())

    watcher = threading.Thread(target=watch, daemon=True)
    started = time.monotonic()
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        after = anonymous_bytes()
        print(
            f"{name}: {time.monotonic() - started:.0f} s, anonymous MiB before {before / MIB:.0f}, "
            f"at most {max(peak[0], after) / MIB:.0f}, after {after / MIB:.0f}",
            flush=True,
        )


def write_rows(path: Path, count: int) -> None:
    """A file of rows as long as Alpaca's are on average, no two alike."""
    some = generate_rows(DISTINCT_ROWS, 0, "train")
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = some[number % DISTINCT_ROWS]
            output = " ".join([row["output"]] * 8)
            file.write(json.dumps({**row, "instruction": f"{number}: {row['instruction']}", "output": output}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="scratch folder; what is made in it is deleted")
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer; without it, that of proxy=tiny")
    parser.add_argument("--max-tokens", type=int, default=512)
    options = parser.parse_args()
    scratch = options.folder / "data_memory"
    scratch.mkdir(parents=True)
    try:
        measure(options, scratch)
    finally:
        shutil.rmtree(scratch)


def measure(options: argparse.Namespace, scratch: Path) -> None:
    """Each step of the data stage in turn."""
    datasets.config.HF_DATASETS_CACHE = scratch / "cache"
    datasets.disable_progress_bars()
    path = scratch / "rows.jsonl"
    write_rows(path, options.rows)
    print(f"{options.rows} rows, {path.stat().st_size / MIB:.0f} MiB")
    if options.tokenizer is None:
        tokenizer = train_tokenizer(prose(200_000, 0), 1024)
    elif (options.tokenizer / "tokenizer.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    else:
        tokenizer = GPT2TokenizerFast.from_pretrained(options.tokenizer)
    nothing = PlantedDefects(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    columns = Columns("instruction", "input", "output")
    source = FileSource(
        path=str(path), limit=None, template="alpaca", schema="auto", columns=columns,
        heldout=Heldout(None, 0, 0.0), corrupt=nothing,
    )  # fmt: skip
    with measured("read and check"):
        records = source.load(0)
    encoder = Encoder(tokenizer, options.max_tokens, Cache(scratch / "store"))
    with measured("tokenise"):
        examples = encoder.encode(records)
    with measured("select a tenth"):
        some = examples.select(examples.example_ids[::10])
    print(f"{len(examples)} examples, {examples.tokens} tokens, a tenth of them {some.tokens}")


if __name__ == "__main__":
    main()
