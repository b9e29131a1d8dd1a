"""Times per-example LoRA gradients of an ensemble: loop, tutorial vmap, and the fused engine, on the same rows.

export PYTHONPATH=.  # for the loop engine among the tests
python scripts/bench_gradients.py --proxy gpt2-random --tokenizer folder/of/gpt2 --data alpaca_data.json
python scripts/bench_gradients.py --proxy folder/of/a/model --data my.jsonl --members 5 --device cuda --precision bf16

loop            one row and one member at a time, by autograd, rows unpadded, fp32: what most implementations do
loop_narrow     the same in the fused engine's precision, where that is not fp32
vmap            vmap over rows of grad, one member after the other, as in the torch.func tutorial: the model's default
                attention, random batches of 8 padded to the longest row, fp32 (vmap over members as well takes more
                than 20 GB for 5 members of GPT-2 124M)
fused           gradients=fused, batches of like length
fused_no_record the same training step without per-example statistics
gemm            the rate of one large matrix product in the fused engine's precision

Methods take turns within each round; a method's time is that of its best round. `fused_share_of_peak` counts the
arithmetic that must be done: 2 FLOPs per weight and token forward, and as many backward through the activations; the
output layer at response positions only; attention scores and the adapters not at all.
"""

import argparse
import ctypes
import json
import platform
import re
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from tests.reference.gradients import LoopEngine
from torch.func import grad_and_value, vmap
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

from gradfiltering.data.batches import Batch, collate
from gradfiltering.data.examples import Encoder, Examples
from gradfiltering.data.schemas import Columns
from gradfiltering.data.sources import FileSource, Heldout
from gradfiltering.gradients.engine import GradientEngine
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.gradients.memory import find_fitting_tokens
from gradfiltering.models.causal_model import FunctionalModel
from gradfiltering.models.language_model import DTYPES, fastest_precision
from gradfiltering.models.lora import Adapters, LoraSettings, initial_adapters
from gradfiltering.models.objectives import ResponseNLL
from gradfiltering.models.weights import count_matmul_weights
from gradfiltering.runs.cache import Cache
from gradfiltering.runs.memory import keep_freed_memory, limit_kept_programs
from gradfiltering.synthetic.planted_defects import PlantedDefects

TUTORIAL_BATCH = 8
GEMM = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser)
    parser.add_argument("--tokens", default="auto", help="padded tokens computed at once by the fused engine, or auto")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="of the methods, only these")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    keep_freed_memory()
    limit_kept_programs()
    figures = Bench(options).run()
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")


def add_common_options(parser: argparse.ArgumentParser, is_data_required: bool = True) -> None:
    """Add the options of every script that runs a proxy over rows."""
    parser.add_argument("--proxy", default="gpt2-random", help="folder, hub id, or gpt2-random: 124M shape")
    parser.add_argument("--tokenizer", type=Path, help="folder of the tokenizer; without it, the model's own")
    parser.add_argument("--data", required=is_data_required, help="file of rows in any supported form")
    parser.add_argument("--rows", type=int, default=32, help="to go through: batches of like length from the pool")
    parser.add_argument("--pool", type=int, default=2000, help="first rows of the file, from which they are taken")
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8, help="rows of one update")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="auto", choices=["auto", "bf16", "fp32"])


@dataclass
class Method:
    """A way to compute the gradients, ready to go through its batches."""

    engine: Callable[[Adapters, Batch], Any]
    batches: list[Batch]
    seconds: float = float("inf")
    peak_mb: float = 0.0


class Bench:
    """The methods on one set of rows."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.device = torch.device(options.device)
        self.precision = fastest_precision(self.device) if options.precision == "auto" else options.precision
        self.tokenizer = load_tokenizer(options)
        self.examples = load_rows(options, self.tokenizer)
        self.settings = LoraSettings(rank=options.rank, alpha=16, target_modules="all-linear", init_b_std=0.02)
        self.models: dict[str, PeftModel] = {}

    def run(self) -> dict[str, Any]:
        """All methods, in turns."""
        methods = self.methods()
        for name in self.options.only or methods:
            if name not in methods:
                raise SystemExit(f"--only {name}: choose among {', '.join(methods)}")
        methods = {name: method for name, method in methods.items() if name in (self.options.only or methods)}
        peak = 0.0
        for number in range(self.options.rounds):
            for name, method in methods.items():
                seconds, memory = self.time(method)
                method.seconds, method.peak_mb = min(method.seconds, seconds), max(method.peak_mb, memory)
                print(f"round {number + 1}: {name} {seconds:.2f} s", flush=True)
            peak = max(peak, gemm_flops_per_second(self.device, DTYPES[self.precision]))
        return self.figures(methods, peak)

    def methods(self) -> dict[str, Method]:
        """Name -> method, in the order they are timed."""
        options, objective = self.options, ResponseNLL()
        rows = [self.batch([row]) for row in range(len(self.examples))]
        shuffled = np.random.default_rng(0).permutation(len(self.examples))
        mixed = [self.batch(shuffled[s : s + TUTORIAL_BATCH]) for s in range(0, len(shuffled), TUTORIAL_BATCH)]
        size = options.batch_size
        by_length = np.argsort(self.examples.lengths, kind="stable")
        similar_batches = [self.batch(by_length[start : start + size]) for start in range(0, len(by_length), size)]
        model = self.model(self.precision)
        fused, bare = (FusedEngine(model, objective, 1 << 30, record_statistics=record) for record in (True, False))
        for engine in (fused, bare):
            engine.to(self.device)
        adapters = self.adapters(model)
        longest = int(self.examples.lengths.max())
        if options.tokens == "auto":
            self.tokens = find_fitting_tokens(fused, adapters, longest, self.device)
        else:
            self.tokens = int(options.tokens)
        fused.chunk_tokens = bare.chunk_tokens = self.tokens
        methods = {"loop": Method(self.step(LoopEngine(self.model("fp32"), objective, 1 << 30)), rows)}
        if self.precision != "fp32":
            methods["loop_narrow"] = Method(self.step(LoopEngine(self.model(self.precision), objective, 1 << 30)), rows)
        methods["vmap"] = Method(tutorial_vmap(self.model("fp32"), objective), mixed)
        methods["fused"] = Method(self.step(fused), similar_batches)
        methods["fused_no_record"] = Method(self.step(bare), similar_batches)
        return methods

    def step(self, engine: GradientEngine) -> Callable[[Adapters, Batch], Any]:
        """Measure as a training step does."""
        return partial(engine.measure, with_mean_gradient=True)

    def time(self, method: Method) -> tuple[float, float]:
        """Seconds of one pass over the method's batches, after a first batch that is not timed, and peak MB."""
        adapters = self.adapters(self.model("fp32"))
        reset_peak(self.device)
        method.engine(adapters, method.batches[0])
        synchronize(self.device)
        started = time.perf_counter()
        for batch in method.batches:
            method.engine(adapters, batch)
        synchronize(self.device)
        return time.perf_counter() - started, peak_mb(self.device)

    def figures(self, methods: dict[str, Method], peak: float) -> dict[str, Any]:
        """Collect the figures that are printed and written."""
        passes = self.options.members
        rows, tokens = len(self.examples) * passes, self.examples.tokens * passes
        figures: dict[str, Any] = {
            "device": device_name(self.device),
            "proxy": self.options.proxy,
            "precision": self.precision,
            "members": self.options.members,
            "rows": len(self.examples),
            "batch_tokens": self.tokens,
        }
        for name, method in methods.items():
            figures[name] = {
                "seconds": round(method.seconds, 3),
                "rows_per_s": round(rows / method.seconds, 2),
                "tokens_per_s": round(tokens / method.seconds, 1),
                "peak_rss_mb": round(method.peak_mb),
            }
        figures["gemm_peak_tflops"] = round(peak / 1e12, 3)
        if "fused" in methods:
            seconds = methods["fused"].seconds
            figures["fused_share_of_peak"] = round(self.flops() / seconds / peak, 3)
            for name, method in methods.items():
                figures[f"{name}_over_fused"] = round(method.seconds / seconds, 3)
        return figures

    def flops(self) -> float:
        """Arithmetic that must be done for all rows and members."""
        responses = int(self.examples.response_tokens.sum())
        per_member = (self.weights - self.head_weights) * self.examples.tokens + self.head_weights * responses
        return 4.0 * self.options.members * per_member

    def batch(self, rows: Any) -> Batch:
        """[B, T] of these rows, padded to the longest of them."""
        return collate(self.examples.table[rows], self.pad_id, (len(rows),)).to(self.device)

    def model(self, precision: str) -> PeftModel:
        """The proxy with LoRA layers; the same weights in every precision."""
        if precision not in self.models:
            torch.manual_seed(0)
            if self.options.proxy == "gpt2-random":
                plain: Any = GPT2LMHeadModel(GPT2Config())
            else:
                plain = AutoModelForCausalLM.from_pretrained(self.options.proxy)
            self.weights, self.head_weights = count_matmul_weights(plain), plain.get_output_embeddings().weight.numel()
            plain = plain.to(DTYPES[precision]).to(self.device).eval().requires_grad_(False)
            self.models[precision] = self.settings.attach(plain)
        return self.models[precision]

    def adapters(self, model: PeftModel) -> Adapters:
        start = initial_adapters(model, self.settings, range(self.options.members), 0)
        return {name: value.to(self.device) for name, value in start.items()}

    @property
    def pad_id(self) -> int:
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        return int(end if pad is None else pad)


def tutorial_vmap(model: PeftModel, objective: ResponseNLL) -> Callable[[Adapters, Batch], Any]:
    """Per-example gradients of an ensemble, written from the torch.func tutorial on per-sample gradients."""

    def loss(adapter: Adapters, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        example = Batch(input_ids[None], labels[None], torch.zeros(1, dtype=torch.int64))
        return objective(FunctionalModel(model, adapter), example)[0]

    per_example = vmap(grad_and_value(loss), in_dims=(None, 0, 0))

    def step(adapters: Adapters, batch: Batch) -> Any:
        member_results = []
        for member in range(len(next(iter(adapters.values())))):
            adapter = {name: value[member] for name, value in adapters.items()}
            gradients, losses = per_example(adapter, batch.input_ids, batch.labels)
            squares = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients.values()])
            member_results.append(
                (squares.sum(0).sqrt(), {name: gradient.mean(0) for name, gradient in gradients.items()}, losses)
            )
        return member_results

    return step


def load_tokenizer(options: argparse.Namespace) -> Any:
    folder = options.tokenizer or options.proxy
    if isinstance(folder, Path) and not (folder / "tokenizer.json").is_file() and (folder / "vocab.json").is_file():
        return GPT2TokenizerFast.from_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def load_rows(options: argparse.Namespace, tokenizer: Any) -> Examples:
    """Rows as the data stage makes them: batches of neighbours by length, evenly spaced over the pool."""
    columns, nothing = Columns("instruction", "input", "output"), PlantedDefects(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    source = FileSource(
        path=options.data, limit=options.pool, template="alpaca", schema="auto", columns=columns,
        heldout=Heldout(None, 0, 0.0), corrupt=nothing,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        pool = Encoder(tokenizer, 512, Cache(scratch)).encode(source.load(0))
        order = np.argsort(pool.lengths, kind="stable")
        count = -(-options.rows // options.batch_size)
        starts = ((np.arange(count) + 0.5) * len(order) / count - options.batch_size / 2).astype(int)
        taken = np.concatenate([order[start : start + options.batch_size] for start in starts])
        return pool.select(pool.example_ids[taken])


def gemm_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """The best rate of a square matrix product."""
    a, b = (torch.randn(GEMM, GEMM, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    best = float("inf")
    for _ in range(8):
        synchronize(device)
        started = time.perf_counter()
        torch.mm(a, b, out=out)
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * GEMM**3 / best


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Gives kept buffers back to the system, so that the peak that follows is the method's own."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    elif platform.system() == "Linux":
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb(device: torch.device) -> float:
    """Peak memory in MiB since `reset_peak`: of the device, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if platform.system() == "Linux":
        peak_line = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert peak_line is not None
        return int(peak_line[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads, {platform.machine()}"


if __name__ == "__main__":
    main()
