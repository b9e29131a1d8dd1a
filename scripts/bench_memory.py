"""Peak memory of training the ensemble, for several ensemble sizes and dataset sizes.

python scripts/bench_memory.py --members 1 3 5 10 20 --rows 1000 10000

Every cell is a process of its own that trains the tiny proxy's shape on rows of the task generator for a few steps and
prints how much its peak memory grew over what it held before the first step.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning as L
import psutil
import torch
from datasets import concatenate_datasets

from gradfiltering.data.encoder import Encoder
from gradfiltering.data.length_buckets import LengthBuckets
from gradfiltering.data.schemas import Columns
from gradfiltering.ensembles.data_module import EnsembleDataModule
from gradfiltering.ensembles.lora_ensemble import LoraEnsemble
from gradfiltering.ensembles.proxy_ensemble import ProxyEnsemble
from gradfiltering.ensembles.snapshots import Timeline
from gradfiltering.ensembles.stack_state import StackState
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.models.lora import LoraSettings, initial_adapters
from gradfiltering.models.objectives import ResponseNLL
from gradfiltering.runs.cache import Cache
from gradfiltering.runs.environment import peak_memory_bytes, reset_peak_memory
from gradfiltering.runs.memory import keep_freed_memory, limit_kept_programs, return_freed_memory
from gradfiltering.synthetic.planted_defects import PlantedDefects
from gradfiltering.synthetic.pretraining import new_model, train_tokenizer
from gradfiltering.synthetic.task_generator import prose
from gradfiltering.synthetic.task_source import TaskSource

POOL = 5000  # different rows of the task generator; more of them are these again
MAX_EPOCHS = 1000  # more than the steps need


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a process for each cell of the table and print its line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, nargs="+", default=[1, 3, 5, 10, 20])
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192], help="padded tokens computed at once")
    parser.add_argument("--cell", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.cell:
        print(json.dumps(measure_cell(options.members[0], options.rows[0], options.tokens[0], options)))
        return
    print("tokens at once | rows | members | MiB before | MiB of growth")
    for tokens in options.tokens:
        for rows in options.rows:
            for members in options.members:
                cell_options = ["--members", members, "--rows", rows, "--tokens", tokens, "--steps", options.steps]
                command = [sys.executable, __file__, "--cell", *map(str, cell_options)]
                command += ["--batch-size", str(options.batch_size)]
                cell_process = subprocess.run(command, capture_output=True, text=True, check=True)
                cell_memory = json.loads(cell_process.stdout.splitlines()[-1])
                print(
                    f"{tokens} | {rows} | {members} | {cell_memory['before']:.0f} | {cell_memory['growth']:.0f}",
                    flush=True,
                )


def measure_cell(members: int, rows: int, tokens: int, options: argparse.Namespace) -> dict[str, float]:
    """Train members on rows for a few steps; return the MiB before the first step, and those of growth."""
    keep_freed_memory()
    limit_kept_programs()
    tokenizer = train_tokenizer(prose(100_000, 0), 1024)
    columns = Columns("instruction", "input", "output")
    source = TaskSource(min(rows, POOL), 0, None, "alpaca", columns, PlantedDefects())
    with tempfile.TemporaryDirectory() as scratch:
        records = source.load(0)
        many = concatenate_datasets([records.rows] * -(-rows // len(records))).select(range(rows))
        records = replace(records, rows=many, kinds=None)
        examples = Encoder(tokenizer, 128, Cache(Path(scratch))).encode_all(records).examples
        shape = {"architecture": "gpt2", "layers": 3, "heads": 4, "width": 96, "context": 128, "vocabulary": 1024}
        lora = LoraSettings(rank=8, alpha=16, target_modules="all-linear", init_b_std=0.02)
        model = lora.attach(new_model(shape, tokenizer, 0).eval().requires_grad_(False))
        ensemble = LoraEnsemble(
            m=members, batch_size=options.batch_size, lr=2e-3, warmup_steps=10, betas=(0.9, 0.999), eps=1e-8,
            weight_decay=0.0, clip_norm=None, collect="snapshot", bucket_batches=8, trajectory_steps=10,
            checkpoint_minutes=10, lora=lora,
        )  # fmt: skip
        engine = FusedEngine(model, ResponseNLL(), tokens)
        module = ProxyEnsemble(
            engine,
            StackState(initial_adapters(model, lora, ensemble.member_ids, 0), {}, 0),
            ensemble,
            ensemble.member_ids,
        )
        buckets = LengthBuckets.of(examples.lengths, ensemble.batch_size, 8, 0)
        stretches = Timeline(buckets.steps_per_epoch).list_stretches(0, MAX_EPOCHS)
        data = EnsembleDataModule(examples, ensemble.member_ids, buckets, 0, 0, stretches)
        trainer = partial(
            L.Trainer, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        device = torch.device("cpu")
        return_freed_memory()
        reset_peak_memory(device)
        start_bytes = psutil.Process().memory_info().rss
        trainer(max_steps=options.steps, max_epochs=MAX_EPOCHS).fit(module, datamodule=data)
        growth = peak_memory_bytes(device) - start_bytes
        return {"before": start_bytes / 2**20, "growth": growth / 2**20}


if __name__ == "__main__":
    main()
