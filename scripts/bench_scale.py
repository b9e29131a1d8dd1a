"""Time and memory of scoring, selecting and showing rows in large numbers, from files.

python scripts/bench_scale.py log --rows 10000000 --members 5 --folder /tmp/scale
python scripts/bench_scale.py scored --rows 100000000 --folder /tmp/scale
python scripts/bench_scale.py online --rows 1000 100000 1000000

`log` writes a synthetic gradient log and lets `gradfiltering select` score it, select a tenth by `top` and by
`stratified`, and write the page. `scored` writes rows with a score and selects a tenth of them. `online` trains one
member for an epoch, recording its gradients. What is measured runs in a process of its own: seconds and peak memory
of each stage, and of the whole process (the operating system's own count).
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradfiltering.runs.gradient_log import PARQUET_FILE, PIECE_ROWS, SCHEMA, partition_folder

MIB, GIB = 2**20, 2**30
EPOCHS = (1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurement", choices=["log", "scored", "select-scored"])
    parser.add_argument("--rows", type=int, nargs="+", required=True)
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--folder", type=Path, required=True, help="scratch folder; its files serve again")
    options = parser.parse_args()
    for row_count in options.rows:
        if options.measurement == "log":
            measure_log(options.folder / f"log-{row_count}", row_count, options.members)
        elif options.measurement == "scored":
            measure_scored(options.folder / f"scored-{row_count}.parquet", row_count)
        else:
            select_scored(options.folder / f"scored-{row_count}.parquet", row_count)


def measure_log(run_folder: Path, row_count: int, members: int) -> None:
    """Select from a synthetic gradient log by the command that users have."""
    if not (run_folder / "gradient_log").is_dir():
        write_log(run_folder / "gradient_log", row_count, members)
    for selector in ("top", "stratified"):
        output_folder = run_folder / selector
        shutil.rmtree(output_folder, ignore_errors=True)
        command = [sys.executable, "-m", "gradfiltering", "select", run_folder, output_folder, f"selector={selector}"]
        costs = run_measured([*map(str, command), "report.figures=false"])
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
    tokens = rows.geometric(1 / 60, row_count).astype(np.int32)
    row_norm = rows.gamma(4, 0.5, row_count) / np.sqrt(tokens)
    late_share = rows.normal(0.9, 0.1, row_count) if epoch == EPOCHS[-1] else 1.0
    norm = row_norm * late_share * np.exp(0.1 * own.normal(size=row_count))
    loss = 2.0 * late_share + 0.1 * own.normal(size=row_count)
    columns = [np.arange(first_row, first_row + row_count), np.abs(norm).astype("f4"), loss.astype("f4"), tokens]
    return pa.table(columns, schema=SCHEMA)


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
