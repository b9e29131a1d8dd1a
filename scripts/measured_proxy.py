"""A proxy with LoRA layers and rows to measure, for the scripts that time or compare per-example gradients."""

import argparse
import copy
import platform
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from file_rows import load_tokenizer, read_rows
from peft import PeftModel
from torch import Tensor
from torch.func import grad_and_value, vmap
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from gradfiltering.data.batches import Batch, collate
from gradfiltering.data.encoder import Encoder
from gradfiltering.data.examples import Examples
from gradfiltering.models.causal_model import FunctionalModel
from gradfiltering.models.language_model import DTYPES, find_context_length
from gradfiltering.models.lora import Adapters, LoraSettings, initial_adapters, member_count
from gradfiltering.models.objectives import ResponseNLL
from gradfiltering.runs.cache import Cache

ALL_LAYERS = "all"
RANDOM_PROXY = "gpt2-random"
MAX_TOKENS = 512
MEMBERS, POOL = 5, 2000  # by default


def add_common_options(parser: argparse.ArgumentParser, is_data_required: bool) -> None:
    """Add the options of every script that runs a proxy over rows."""
    parser.add_argument("--proxy", default=RANDOM_PROXY, help="folder, hub id, or gpt2-random: 124M shape")
    parser.add_argument("--tokenizer", type=Path, help="folder of the tokenizer; without it, the model's own")
    parser.add_argument("--data", required=is_data_required, help="file of rows in any supported form")
    parser.add_argument("--rows", type=int, default=32, help="to go through: batches of like length from the pool")
    parser.add_argument("--pool", type=int, default=POOL, help=f"first rows of the file to take them from, or {POOL}")
    parser.add_argument("--members", type=int, default=MEMBERS, help=f"adapters, {MEMBERS} of them unless told")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8, help="rows of one update")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


class MeasuredProxy:
    """A proxy in one precision, and rows for it to measure.

    Args:
        options: of `add_common_options`.
        precision: fp32, bf16 or fp64.
        tokens_per_row: of invented rows; None for rows of the file.

    Attributes:
        device: of model and batches.
        plain_model: frozen and without adapters.
        examples: the rows.
        members: number of adapters.
    """

    def __init__(self, options: argparse.Namespace, precision: str, tokens_per_row: int | None = None):
        self.device = torch.device(options.device)
        self.members: int = options.members
        self.plain_model = load_model(options.proxy).to(DTYPES[precision]).to(self.device)
        self.plain_model.eval().requires_grad_(False)
        self._rank: int = options.rank
        self._models: dict[tuple[str, str], PeftModel] = {}
        if tokens_per_row is None:
            if options.tokenizer is None and options.proxy == RANDOM_PROXY:
                raise SystemExit(f"--proxy {RANDOM_PROXY} has no tokenizer of its own; give --tokenizer FOLDER")
            tokenizer = load_tokenizer(options.tokenizer or options.proxy)
            max_tokens = min(MAX_TOKENS, find_context_length(self.plain_model.config, tokenizer))
            self.examples = load_rows(options, tokenizer, max_tokens)
            self._pad_id = int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
        else:
            self.examples = invent_rows(options.rows, tokens_per_row, self.plain_model.config.vocab_size)
            self._pad_id = 0  # all rows are of one length

    def model(self, layers: str, engine_name: str) -> PeftModel:
        """Return the proxy with LoRA layers; engines change how a model computes, so each has a copy of its own."""
        key = (layers, engine_name)
        if key not in self._models:
            shared_tensors = [*self.plain_model.parameters(), *self.plain_model.buffers()]
            plain_copy = copy.deepcopy(self.plain_model, {id(tensor): tensor for tensor in shared_tensors})
            self._models[key] = self._settings(layers).attach(plain_copy)
        return self._models[key]

    def adapters(self, model: PeftModel, layers: str) -> Adapters:
        """Draw all members' adapters, B at random as in mid-training."""
        start = initial_adapters(model, self._settings(layers), range(self.members), 0)
        return {name: value.to(self.device) for name, value in start.items()}

    def batches(self, row_order: np.ndarray, batch_size: int) -> list[Batch]:
        """Cut rows in this order into batches."""
        return [self.batch(row_order[start : start + batch_size]) for start in range(0, len(row_order), batch_size)]

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """Pad rows to the longest of them, [B, T]."""
        return collate(self.examples.table[rows], self._pad_id, (len(rows),)).to(self.device)

    def _settings(self, layers: str) -> LoraSettings:
        return LoraSettings(self._rank, 16, "all-linear", 0.02, layers)


def load_model(name: str) -> Any:
    """Load a causal language model, or make GPT-2's 124M shape with random weights."""
    torch.manual_seed(0)
    if name == RANDOM_PROXY:
        return GPT2LMHeadModel(GPT2Config())
    return AutoModelForCausalLM.from_pretrained(name)


def load_rows(options: argparse.Namespace, tokenizer: Any, max_tokens: int) -> Examples:
    """Load rows as the data stage makes them: batches of neighbours by length, evenly spaced over the pool.

    Args:
        options: of `add_common_options`.
        tokenizer: of the proxy.
        max_tokens: longer rows are cut to so many.
    """
    with tempfile.TemporaryDirectory() as scratch:
        encoder = Encoder(tokenizer, max_tokens, Cache(scratch))
        pool = encoder.encode(read_rows(options.data, options.pool))
        order = np.argsort(pool.lengths, kind="stable")
        batch_count = -(-options.rows // options.batch_size)
        if batch_count * options.batch_size > len(order):
            raise SystemExit(
                f"{batch_count} batches of {options.batch_size} rows are more than the {len(order)} rows of the pool; "
                "give fewer --rows, or a file and a --pool of more"
            )
        centres = (np.arange(batch_count) + 0.5) * len(order) / batch_count
        starts = (centres - options.batch_size / 2).astype(int)
        taken = np.concatenate([order[start : start + options.batch_size] for start in starts])[: options.rows]
        return pool.select(pool.example_ids[taken])


def invent_rows(rows: int, tokens_per_row: int, vocabulary: int) -> Examples:
    """Draw rows of random tokens, whose second half is the response."""
    prompt_tokens = tokens_per_row // 2
    table = Dataset.from_dict(
        {
            "example_id": list(range(rows)),
            "input_ids": np.random.default_rng(0).integers(vocabulary, size=(rows, tokens_per_row)).tolist(),
            "supervised": [[prompt_tokens, tokens_per_row]] * rows,
        }
    )
    lengths = np.full(rows, tokens_per_row, dtype=np.int32)
    return Examples(table, np.arange(rows), lengths, lengths - prompt_tokens, 0, 0, tokens_per_row, [])


def tutorial_vmap(model: PeftModel, objective: ResponseNLL) -> Callable[[Adapters, Batch], Tensor]:
    """Make [M, B] gradient norms (and mean gradients) from the torch.func tutorial on per-sample gradients."""

    def loss(adapter: Adapters, input_ids: Tensor, labels: Tensor) -> Tensor:
        example = Batch(input_ids[None], labels[None], torch.zeros(1, dtype=torch.int64))
        return objective(FunctionalModel(model, adapter), example)[0]

    per_example = vmap(grad_and_value(loss), in_dims=(None, 0, 0))

    def measure(adapters: Adapters, batch: Batch) -> Tensor:
        member_norms, mean_gradients = [], []
        for member in range(member_count(adapters)):
            adapter = {name: value[member] for name, value in adapters.items()}
            gradients, _ = per_example(adapter, batch.input_ids, batch.labels)
            squares = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients.values()])
            member_norms.append(squares.sum(0).sqrt())
            mean_gradients.append({name: gradient.mean(0) for name, gradient in gradients.items()})
        return torch.stack(member_norms)

    return measure


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe_device(device: torch.device) -> str:
    """Name a GPU, or the threads of a CPU and its kind."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads, {platform.machine()}"
