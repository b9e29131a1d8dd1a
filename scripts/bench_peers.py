"""Time per-example LoRA gradients of an ensemble by this engine, with and without frozen prefix, and by its peers.

    export PYTHONPATH=.  # for the loop engine among the tests
    python scripts/bench_peers.py --proxy smollm2 --data alpaca_data.json --rows 32 --precision fp32 --json peers.json
    python scripts/bench_peers.py --proxy smollm2 --shapes --rows 8 --precision fp32 --json shapes.json

All methods compute one training step's worth of every row under every member, on the same rows, with the same adapters
and in the same precision, in turns; a method's time is the median of its rounds.

loop                one row and one member at a time, by autograd, rows unpadded, adapters in all layers
loop_prefix_layers  the same with adapters in the last layers only
tutorial_vmap       vmap over rows of grad, one member after the other, as in the torch.func tutorial, all layers: the
                    model's default attention, random batches of 8 padded to the longest row
bergson             the gradient collector of bergson, one member after the other, all layers, batches of like length
opacus              the GradSampleModule of Opacus, one member after the other, all layers, batches of like length
fused               this engine, all layers, batches of like length
fused_prefix        this engine, last layers, going on from kept states of the layers below

`max_relative_difference` is the largest difference of a gradient norm from that of the loop over the same layers, which
in bfloat16 has its own rounding. The states of `fused_prefix` are made once for all members, epochs and passes;
`prefix_seconds` is what that took, and is not part of its time. `faster_than_fused` names the methods with adapters in
all layers that took less time than `fused`. A peer that cannot run is left out and named with its reason (`left_out`).

bergson and Opacus live in a folder of their own, behind the packages of the project, none of which they replace;
bergson's further requirements (torchvision, torchaudio, bitsandbytes) are not needed for its collector:

    python -m pip install --no-deps --target peers bergson==2.5.1 opacus==1.6.0 opt-einsum==3.4.0 jaxtyping==0.3.11 \
        wadler-lindig==0.1.8 ml-dtypes==0.6.0 natsort==8.4.0 petname==2.9 simple-parsing==0.1.9 \
        docstring-parser==0.18.0 torchopt==0.7.3 optree==0.20.0
    export PYTHONPATH=.:peers

`--shapes` goes through a table of shapes, members x tokens, with rows of random tokens, all of that length, whose
second half is the response. Without values these are 1, 3 and 10 members times 32, 128 and 512 tokens. The figures of
each shape then stand under `shapes`, and `--json` is written after each.
"""

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from tests.reference.gradients import LoopEngine
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from bench_gradients import (
    TUTORIAL_BATCH,
    add_common_options,
    device_name,
    load_rows,
    load_tokenizer,
    peak_mb,
    reset_peak,
    synchronize,
    tutorial_vmap,
)
from gradfiltering.data.batches import Batch, collate
from gradfiltering.data.examples import Examples
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.gradients.memory import find_fitting_tokens
from gradfiltering.models.adapted_layers import find_layers
from gradfiltering.models.language_model import DTYPES, fastest_precision
from gradfiltering.models.lora import Adapters, LoraSettings, initial_adapters
from gradfiltering.models.objectives import ResponseNLL
from gradfiltering.models.smollm2 import SmolLM2
from gradfiltering.runs.memory import keep_freed_memory, limit_kept_programs
from peer_gradients import bergson_norms, opacus_norms

ALL_LAYERS = "all"
NO_LIMIT = 1 << 30
METHODS = ("loop", "loop_prefix_layers", "tutorial_vmap", "bergson", "opacus", "fused", "fused_prefix")
OTHER_PEOPLES_METHODS = ("tutorial_vmap", "bergson", "opacus")
SHAPES = ((1, 32), (3, 32), (10, 32), (1, 128), (3, 128), (10, 128), (1, 512), (3, 512), (10, 512))


def main() -> None:
    """Time the methods, and print and write the figures."""
    options = parse_options()
    keep_freed_memory()
    limit_kept_programs()
    with tempfile.TemporaryDirectory() as model_folder:
        if options.proxy == "smollm2":
            SmolLM2().convert(Path(model_folder))
            options.proxy = model_folder
        run_benchmark(options)


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; `shapes` is None where the rows of a file are measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser, is_data_required=False)
    parser.add_argument("--shapes", nargs="*", type=_shape, help="such as 1x32 10x512, members x tokens; see above")
    parser.add_argument("--prefix-layers", type=int, help="last layers with adapters; without it, the last quarter")
    parser.add_argument("--tokens", default="auto", help="padded tokens computed at once by this engine, or auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=METHODS, help="of the methods, only these")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(arguments)
    if (options.data is None) == (options.shapes is None):
        parser.error("give either --data or --shapes")
    if options.shapes == []:
        options.shapes = list(SHAPES)
    return options


def _shape(text: str) -> tuple[int, int]:
    members, tokens = (int(number) for number in text.split("x"))
    if members < 1 or tokens < 2:
        raise ValueError
    return members, tokens


def run_benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the rows of the file, or each shape; print and write the figures, and return them."""
    if options.shapes is None:
        figures = PeerBench(options).run()
        _write(figures, options.json)
        return figures
    shape_figures: dict[str, Any] = {}
    for members, tokens_per_row in options.shapes:
        shape_options = argparse.Namespace(**{**vars(options), "members": members})
        shape_figures[f"{members}x{tokens_per_row}"] = PeerBench(shape_options, tokens_per_row).run()
        _write({"shapes": shape_figures}, options.json)
    return {"shapes": shape_figures}


def _write(figures: dict[str, Any], json_file: Path | None) -> None:
    print(json.dumps(figures, indent=2), flush=True)
    if json_file:
        json_file.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")


@dataclass
class Method:
    """A way to compute the gradients, ready to go through its batches.

    Attributes:
        measure: (adapters, batch) -> [M, B] gradient norms; computes mean gradients as well.
        batches: of the rows.
        layers: with adapters.
        seconds: of each round.
        cpu_seconds: of each round, over the process's threads; of use where other programs share the machine.
        peak: MB.
        norms: example id -> [M] norms.
    """

    measure: Callable[[Adapters, Batch], Tensor]
    batches: list[Batch]
    layers: str
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak: float = 0.0
    norms: dict[int, Tensor] = field(default_factory=dict)


class PeerBench:
    """The methods on one set of rows.

    Attributes:
        options: of the command line.
        tokens_per_row: of invented rows; None for the rows of the file.
        left_out: name -> reason of each peer that cannot run.
    """

    def __init__(self, options: argparse.Namespace, tokens_per_row: int | None = None):
        self.options = options
        self.device = torch.device(options.device)
        self.precision = fastest_precision(self.device) if options.precision == "auto" else options.precision
        self.plain_model = self._load_plain_model().to(DTYPES[self.precision]).to(self.device)
        self.plain_model.eval().requires_grad_(False)
        if tokens_per_row is None:
            tokenizer = load_tokenizer(options)
            self.examples = load_rows(options, tokenizer)
            self.pad_id = int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
        else:
            self.examples = invent_rows(options.rows, tokens_per_row, self.plain_model.config.vocab_size)
            self.pad_id = 0  # all rows are of one length
        layer_list = find_layers(self.plain_model)
        assert layer_list is not None, "the proxy has no list of layers"
        self.layer_count = len(layer_list.layers)
        self.prefix_layers = options.prefix_layers or -(-self.layer_count // 4)
        self.models: dict[str, PeftModel] = {}
        self.prefix_seconds = 0.0
        self.left_out: dict[str, str] = {}

    def run(self) -> dict[str, Any]:
        """Time all methods in turns."""
        methods: dict[str, Method] = {}
        for name, build in self._builders().items():
            if name in (self.options.only or METHODS):
                self._attempt(name, lambda name=name, build=build: methods.update({name: build()}))
        for round_number in range(self.options.rounds):
            for name, method in methods.items():
                if name in self.left_out or not self._attempt(name, partial(self._time, method)):
                    continue
                print(
                    f"round {round_number + 1}: {name} {method.seconds[-1]:.2f} s, CPU {method.cpu_seconds[-1]:.2f} s",
                    flush=True,
                )
        return self._describe({name: method for name, method in methods.items() if name not in self.left_out})

    def _attempt(self, name: str, action: Callable[[], None]) -> bool:
        """Build or time a method; a library of other people that fails, however it does, is left out and named."""
        try:
            action()
        except Exception as error:
            if name not in OTHER_PEOPLES_METHODS:
                raise
            self.left_out[name] = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"left out: {name}: {self.left_out[name]}", flush=True)
        return name not in self.left_out

    def _builders(self) -> dict[str, Callable[[], Method]]:
        """Return name -> what builds the method, in the order they are timed."""
        prefix_layers = f"last_{self.prefix_layers}"
        single_rows = [self._batch([row]) for row in range(len(self.examples))]
        random_order = np.random.default_rng(0).permutation(len(self.examples))
        random_batches = self._batches(random_order, TUTORIAL_BATCH)
        like_batches = self._batches(np.argsort(self.examples.lengths, kind="stable"), self.options.batch_size)
        return {
            "loop": lambda: Method(self._measure_by(self._loop_engine(ALL_LAYERS)), single_rows, ALL_LAYERS),
            "loop_prefix_layers": lambda: Method(
                self._measure_by(self._loop_engine(prefix_layers)), single_rows, prefix_layers
            ),
            "tutorial_vmap": lambda: Method(
                partial(_tutorial_norms, tutorial_vmap(self._model(ALL_LAYERS, "vmap"), ResponseNLL())),
                random_batches,
                ALL_LAYERS,
            ),
            "bergson": lambda: Method(bergson_norms(self._model(ALL_LAYERS, "bergson")), like_batches, ALL_LAYERS),
            "opacus": lambda: Method(opacus_norms(self._model(ALL_LAYERS, "opacus")), like_batches, ALL_LAYERS),
            "fused": lambda: Method(self._measure_by(self._fused_engine(ALL_LAYERS)), like_batches, ALL_LAYERS),
            "fused_prefix": lambda: self._build_fused_prefix(like_batches, prefix_layers),
        }

    def _build_fused_prefix(self, batches: list[Batch], prefix_layers: str) -> Method:
        engine = self._fused_engine(prefix_layers)
        started = time.perf_counter()
        prefix = engine.prefix
        assert prefix is not None, engine.prefix_refusal
        prefix_batches = [
            replace(batch, prefix_states=engine.compute_prefix_states(prefix, batch.input_ids)) for batch in batches
        ]
        synchronize(self.device)
        self.prefix_seconds = time.perf_counter() - started
        return Method(self._measure_by(engine), prefix_batches, prefix_layers)

    def _measure_by(self, engine: Any) -> Callable[[Adapters, Batch], Tensor]:
        return lambda adapters, batch: engine.measure(adapters, batch, with_mean_gradient=True).grad_norm

    def _loop_engine(self, layers: str) -> LoopEngine:
        return LoopEngine(self._model(layers, "loop"), ResponseNLL(), NO_LIMIT)

    def _fused_engine(self, layers: str) -> FusedEngine:
        model = self._model(layers, "fused")
        engine = FusedEngine(model, ResponseNLL(), NO_LIMIT)
        engine.to(self.device)
        if self.options.tokens == "auto":
            longest = int(self.examples.lengths.max())
            engine.chunk_tokens = find_fitting_tokens(engine, self._adapters(model, layers), longest, self.device)
        else:
            engine.chunk_tokens = int(self.options.tokens)
        return engine

    def _time(self, method: Method) -> None:
        """Go through the method's batches once, after a first batch that is not timed."""
        adapters = self._adapters(self._model(method.layers, "fused"), method.layers)
        reset_peak(self.device)
        method.measure(adapters, method.batches[0])
        synchronize(self.device)
        started, cpu_started = time.perf_counter(), time.process_time()
        norms = [method.measure(adapters, batch) for batch in method.batches]
        synchronize(self.device)
        method.seconds.append(time.perf_counter() - started)
        method.cpu_seconds.append(time.process_time() - cpu_started)
        method.peak = max(method.peak, peak_mb(self.device))
        for batch, batch_norms in zip(method.batches, norms, strict=True):
            method.norms.update(zip(batch.example_id.tolist(), batch_norms.T.double().cpu(), strict=True))

    def _describe(self, methods: dict[str, Method]) -> dict[str, Any]:
        """Gather what is printed and written."""
        row_passes = len(self.examples) * self.options.members
        references = {method.layers: method for name, method in methods.items() if name.startswith("loop")}
        figures: dict[str, Any] = {
            "device": device_name(self.device),
            "precision": self.precision,
            "members": self.options.members,
            "rows": len(self.examples),
            "longest_row": int(self.examples.lengths.max()),
            "layers": self.layer_count,
            "prefix_layers": self.prefix_layers,
            "prefix_seconds": round(self.prefix_seconds, 3),
            "methods": {},
            "left_out": self.left_out,
        }
        for name, method in methods.items():
            seconds = median(method.seconds)
            reference = references.get(method.layers)
            figures["methods"][name] = {
                "seconds": round(seconds, 3),
                "cpu_seconds": round(median(method.cpu_seconds), 3),
                "rows_per_s": round(row_passes / seconds, 2),
                "peak_mb": round(method.peak),
                "max_relative_difference": None if reference is None else _largest_difference(method, reference),
            }
        if "fused" in methods:
            fused_seconds = median(methods["fused"].seconds)
            figures["faster_than_fused"] = [
                name
                for name, method in methods.items()
                if method.layers == ALL_LAYERS and median(method.seconds) < fused_seconds
            ]
        return figures

    def _batches(self, row_order: np.ndarray, batch_size: int) -> list[Batch]:
        return [self._batch(row_order[start : start + batch_size]) for start in range(0, len(row_order), batch_size)]

    def _batch(self, rows: Any) -> Batch:
        """Pad rows to the longest of them, [B, T]."""
        return collate(self.examples.table[rows], self.pad_id, (len(rows),)).to(self.device)

    def _load_plain_model(self) -> Any:
        torch.manual_seed(0)
        if self.options.proxy == "gpt2-random":
            return GPT2LMHeadModel(GPT2Config())
        return AutoModelForCausalLM.from_pretrained(self.options.proxy)

    def _model(self, layers: str, engine_name: str) -> PeftModel:
        """Return the proxy with LoRA layers; engines change how a model computes, so each has a copy of its own."""
        key = f"{layers} {engine_name}"
        if key not in self.models:
            shared_tensors = [*self.plain_model.parameters(), *self.plain_model.buffers()]
            plain_copy = copy.deepcopy(self.plain_model, {id(tensor): tensor for tensor in shared_tensors})
            self.models[key] = self._settings(layers).attach(plain_copy)
        return self.models[key]

    def _settings(self, layers: str) -> LoraSettings:
        return LoraSettings(self.options.rank, 16, "all-linear", 0.02, layers)

    def _adapters(self, model: PeftModel, layers: str) -> Adapters:
        start = initial_adapters(model, self._settings(layers), range(self.options.members), 0)
        return {name: value.to(self.device) for name, value in start.items()}


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


def _tutorial_norms(step: Callable[[Adapters, Batch], Any], adapters: Adapters, batch: Batch) -> Tensor:
    return torch.stack([norms for norms, _, _ in step(adapters, batch)])


def _largest_difference(method: Method, reference: Method) -> float:
    differences = [
        float((norms / reference.norms[example_id] - 1).abs().max()) for example_id, norms in method.norms.items()
    ]
    return float(f"{max(differences):.2g}")


if __name__ == "__main__":
    main()
