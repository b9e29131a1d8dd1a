"""Time per-example LoRA gradients of an ensemble by this engine, with and without frozen prefix, and by its peers.

    export PYTHONPATH=.  # for the loop engine among the tests
    python scripts/bench_peers.py --proxy smollm2 --data alpaca_data.json --rows 32 --precision fp32 --json peers.json

All methods compute one training step's worth of every row under every member, on the same rows, with the same adapters
and in the same precision, in turns; a method's time is the median of its rounds.

loop                one row and one member at a time, by autograd, rows unpadded, adapters in all layers
loop_prefix_layers  the same with adapters in the last layers only
tutorial_vmap       vmap over rows of grad, one member after the other, as in the torch.func tutorial, all layers: the
                    model's default attention, random batches of 8 padded to the longest row
fused               this engine, all layers, batches of like length
fused_prefix        this engine, last layers, going on from kept states of the layers below

`max_relative_difference` is the largest difference of a gradient norm from that of the loop over the same layers, which
in bfloat16 has its own rounding. The states of `fused_prefix` are made once for all members, epochs and passes;
`prefix_seconds` is what that took, and is not part of its time.
"""

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
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
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.gradients.memory import find_fitting_tokens
from gradfiltering.models.adapted_layers import find_layers
from gradfiltering.models.language_model import DTYPES, fastest_precision
from gradfiltering.models.lora import Adapters, LoraSettings, initial_adapters
from gradfiltering.models.objectives import ResponseNLL
from gradfiltering.models.smollm2 import SmolLM2
from gradfiltering.runs.memory import keep_freed_memory

ALL_LAYERS = "all"
NO_LIMIT = 1 << 30


def main() -> None:
    """Time the methods, and print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser)
    parser.add_argument("--prefix-layers", type=int, help="last layers with adapters; without it, the last quarter")
    parser.add_argument("--tokens", default="auto", help="padded tokens computed at once by this engine, or auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="of the methods, only these")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as model_folder:
        if options.proxy == "smollm2":
            SmolLM2().convert(Path(model_folder))
            options.proxy = model_folder
        figures = PeerBench(options).run()
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")


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
    """The methods on one set of rows."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.device = torch.device(options.device)
        self.precision = fastest_precision(self.device) if options.precision == "auto" else options.precision
        self.tokenizer = load_tokenizer(options)
        self.examples = load_rows(options, self.tokenizer)
        self.plain_model = self._load_plain_model().to(DTYPES[self.precision]).to(self.device)
        self.plain_model.eval().requires_grad_(False)
        layer_list = find_layers(self.plain_model)
        assert layer_list is not None, "the proxy has no list of layers"
        self.layer_count = len(layer_list.layers)
        self.prefix_layers = options.prefix_layers or -(-self.layer_count // 4)
        self.models: dict[str, PeftModel] = {}
        self.prefix_seconds = 0.0

    def run(self) -> dict[str, Any]:
        """Time all methods in turns."""
        methods = self._build_methods()
        unknown_names = set(self.options.only or ()) - set(methods)
        if unknown_names:
            raise SystemExit(f"--only {' '.join(sorted(unknown_names))}: choose among {', '.join(methods)}")
        methods = {name: one for name, one in methods.items() if name in (self.options.only or methods)}
        for round_number in range(self.options.rounds):
            for name, method in methods.items():
                self._time(method)
                print(
                    f"round {round_number + 1}: {name} {method.seconds[-1]:.2f} s, CPU {method.cpu_seconds[-1]:.2f} s",
                    flush=True,
                )
        return self._describe(methods)

    def _build_methods(self) -> dict[str, Method]:
        """Build name -> method, in the order they are timed."""
        prefix_layers = f"last_{self.prefix_layers}"
        single_rows = [self._batch([row]) for row in range(len(self.examples))]
        shuffled = np.random.default_rng(0).permutation(len(self.examples))
        random_batches = [
            self._batch(shuffled[s : s + TUTORIAL_BATCH]) for s in range(0, len(shuffled), TUTORIAL_BATCH)
        ]
        batch_size = self.options.batch_size
        by_length = np.argsort(self.examples.lengths, kind="stable")
        like_batches = [self._batch(by_length[s : s + batch_size]) for s in range(0, len(by_length), batch_size)]
        fused, fused_prefix = self._fused_engine(ALL_LAYERS), self._fused_engine(prefix_layers)
        started = time.perf_counter()
        prefix = fused_prefix.prefix
        assert prefix is not None, fused_prefix.prefix_refusal
        prefix_batches = [
            replace(batch, prefix_states=fused_prefix.compute_prefix_states(prefix, batch.input_ids))
            for batch in like_batches
        ]
        synchronize(self.device)
        self.prefix_seconds = time.perf_counter() - started
        return {
            "loop": Method(self._measure_by(self._loop_engine(ALL_LAYERS)), single_rows, ALL_LAYERS),
            "loop_prefix_layers": Method(
                self._measure_by(self._loop_engine(prefix_layers)), single_rows, prefix_layers
            ),
            "tutorial_vmap": Method(
                partial(_tutorial_norms, tutorial_vmap(self._model(ALL_LAYERS, "vmap"), ResponseNLL())),
                random_batches,
                ALL_LAYERS,
            ),
            "fused": Method(self._measure_by(fused), like_batches, ALL_LAYERS),
            "fused_prefix": Method(self._measure_by(fused_prefix), prefix_batches, prefix_layers),
        }

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
        return figures

    def _batch(self, rows: Any) -> Batch:
        """Pad rows to the longest of them, [B, T]."""
        pad_id = self.tokenizer.pad_token_id
        pad_id = self.tokenizer.eos_token_id if pad_id is None else pad_id
        return collate(self.examples.table[rows], int(pad_id), (len(rows),)).to(self.device)

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


def _tutorial_norms(step: Callable[[Adapters, Batch], Any], adapters: Adapters, batch: Batch) -> Tensor:
    return torch.stack([norms for norms, _, _ in step(adapters, batch)])


def _largest_difference(method: Method, reference: Method) -> float:
    differences = [
        float((norms / reference.norms[example_id] - 1).abs().max()) for example_id, norms in method.norms.items()
    ]
    return float(f"{max(differences):.2g}")


if __name__ == "__main__":
    main()
