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
fused_no_record     the same training step without per-example statistics
fused_prefix        this engine, last layers, going on from kept states of the layers below

`max_relative_difference` is the largest difference of a gradient norm from that of the loop over the same layers, which
in bfloat16 has its own rounding. The states of `fused_prefix` are made once for all members, epochs and passes;
`prefix_seconds` is what that took, and is not part of its time. `faster_than_fused` names the methods of other people
with adapters in all layers, and the loop, that took less time than `fused`. A peer that cannot run is left out and
named with its reason (`left_out`).

`--peak` measures the rate of a large matrix product in the same precision (`gemm_peak_tflops`) and gives the share of
it that `fused` reaches (`fused_share_of_peak`). It counts the arithmetic that must be done: 2 operations per weight and
token forward, and as many backward through the activations; the output layer at response positions only; attention
scores and the adapters not at all.

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
from measured_proxy import (
    ALL_LAYERS,
    MEMBERS,
    POOL,
    MeasuredProxy,
    add_common_options,
    describe_device,
    synchronize,
    tutorial_vmap,
)
from peer_gradients import bergson_norms, opacus_norms
from torch import Tensor

from gradfiltering.data.batches import Batch
from gradfiltering.gradients.body_graph import can_record
from gradfiltering.gradients.engine import GradientEngine
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.gradients.memory import find_fitting_tokens
from gradfiltering.models.adapted_layers import find_layers
from gradfiltering.models.language_model import DTYPES, fastest_precision
from gradfiltering.models.lora import Adapters
from gradfiltering.models.objectives import ResponseNLL
from gradfiltering.models.smollm2 import SmolLM2
from gradfiltering.models.weights import count_matmul_weights
from gradfiltering.runs.environment import peak_memory_bytes, reset_peak_memory
from gradfiltering.runs.memory import keep_freed_memory, limit_kept_programs, return_freed_memory
from tests.reference.gradients import LoopEngine

NO_LIMIT = 1 << 30
TUTORIAL_BATCH = 8
GEMM_WIDTH, GEMM_REPEATS = 4096, 8
METHODS = (
    "loop", "loop_prefix_layers", "tutorial_vmap", "bergson", "opacus", "fused", "fused_no_record", "fused_prefix",
)  # fmt: skip
OTHER_PEOPLES_METHODS = ("tutorial_vmap", "bergson", "opacus")
SHAPES = ((1, 32), (3, 32), (10, 32), (1, 128), (3, 128), (10, 128), (1, 512), (3, 512), (10, 512))

MeasureNorms = Callable[[Adapters, Batch], Tensor]


def main(arguments: Sequence[str] | None = None) -> None:
    """Time the methods, and print and write the figures."""
    options = parse_options(arguments)
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
    parser.add_argument("--precision", default="auto", choices=["auto", "bf16", "fp32"])
    parser.add_argument("--shapes", nargs="*", type=_shape, help="such as 1x32 10x512, members x tokens; see above")
    parser.add_argument("--prefix-layers", type=int, help="last layers with adapters; without it, the last quarter")
    parser.add_argument("--tokens", default="auto", help="padded tokens computed at once by this engine, or auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=METHODS, help="of the methods, only these")
    parser.add_argument("--peak", action="store_true", help="measure the rate of a large matrix product as well")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.set_defaults(members=None, pool=None)
    options = parser.parse_args(arguments)
    if (options.data is None) == (options.shapes is None):
        parser.error("give either --data or --shapes")
    if options.shapes is None:
        options.members = options.members or MEMBERS
        options.pool = options.pool or POOL
    elif options.members or options.pool or options.tokenizer:
        parser.error("--members, --pool and --tokenizer are of --data; shapes say how many members and tokens")
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
        untimed_passes: through all batches, before the first round: on a GPU this engine computes operation by
            operation the first time a shape comes, records it the second time, and replays from then on.
        seconds: of each round.
        cpu_seconds: of each round, over the process's threads; of use where other programs share the machine.
        peak: MiB.
        norms: example id -> [M] norms; empty for a method that records none.
    """

    measure: MeasureNorms
    batches: list[Batch]
    layers: str
    untimed_passes: int = 0
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak: float = 0.0
    norms: dict[int, Tensor] = field(default_factory=dict)


class PeerBench:
    """The methods on one set of rows.

    Args:
        options: of the command line.
        tokens_per_row: of invented rows; None for the rows of the file.

    Attributes:
        proxy: the model and its rows.
        left_out: name -> reason of each peer that cannot run.
    """

    def __init__(self, options: argparse.Namespace, tokens_per_row: int | None = None):
        self.options = options
        device = torch.device(options.device)
        self.precision = fastest_precision(device) if options.precision == "auto" else options.precision
        self.proxy = MeasuredProxy(options, self.precision, tokens_per_row)
        layer_list = find_layers(self.proxy.plain_model)
        assert layer_list is not None, "the proxy has no list of layers"
        self.layer_count = len(layer_list.layers)
        self.prefix_layers = options.prefix_layers or -(-self.layer_count // 4)
        self.prefix_seconds = 0.0
        self.left_out: dict[str, str] = {}

    def run(self) -> dict[str, Any]:
        """Time all methods in turns."""
        methods: dict[str, Method] = {}

        def add_method(name: str, build: Callable[[], Method]) -> None:
            methods[name] = build()

        for name, build in self._builders().items():
            if name in (self.options.only or METHODS):
                self._attempt(name, partial(add_method, name, build))
        gemm_rate = 0.0
        for round_number in range(self.options.rounds):
            for name, method in methods.items():
                if name in self.left_out or not self._attempt(name, partial(self._time, method)):
                    continue
                print(
                    f"round {round_number + 1}: {name} {method.seconds[-1]:.2f} s, CPU {method.cpu_seconds[-1]:.2f} s",
                    flush=True,
                )
            if self.options.peak:
                gemm_rate = max(gemm_rate, measure_gemm_rate(self.proxy.device, DTYPES[self.precision]))
        left_in = {name: method for name, method in methods.items() if name not in self.left_out}
        return {**self._describe(left_in), **self._describe_peak(left_in, gemm_rate)}

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
        proxy, last_layers = self.proxy, f"last_{self.prefix_layers}"
        single_rows = proxy.batches(np.arange(len(proxy.examples)), 1)
        random_order = np.random.default_rng(0).permutation(len(proxy.examples))
        random_batches = proxy.batches(random_order, TUTORIAL_BATCH)
        like_batches = proxy.batches(np.argsort(proxy.examples.lengths, kind="stable"), self.options.batch_size)

        def loop(layers: str) -> Method:
            engine = LoopEngine(proxy.model(layers, "loop"), ResponseNLL(), NO_LIMIT)
            return Method(_measure_by(engine), single_rows, layers)

        def peer(make_norms: Callable[..., MeasureNorms], name: str, batches: list[Batch], *arguments: Any) -> Method:
            return Method(make_norms(proxy.model(ALL_LAYERS, name), *arguments), batches, ALL_LAYERS)

        def fused(record_statistics: bool) -> Method:
            engine = self._fused_engine(ALL_LAYERS, record_statistics)
            measure = _measure_by(engine) if record_statistics else _train_by(engine)
            return Method(measure, like_batches, ALL_LAYERS, self._recorded_passes)

        return {
            "loop": partial(loop, ALL_LAYERS),
            "loop_prefix_layers": partial(loop, last_layers),
            "tutorial_vmap": lambda: peer(tutorial_vmap, "vmap", random_batches, ResponseNLL()),
            "bergson": lambda: peer(bergson_norms, "bergson", like_batches),
            "opacus": lambda: peer(opacus_norms, "opacus", like_batches),
            "fused": partial(fused, record_statistics=True),
            "fused_no_record": partial(fused, record_statistics=False),
            "fused_prefix": lambda: self._build_fused_prefix(like_batches, last_layers),
        }

    def _build_fused_prefix(self, batches: list[Batch], last_layers: str) -> Method:
        engine = self._fused_engine(last_layers, record_statistics=True)
        started = time.perf_counter()
        prefix = engine.prefix
        assert prefix is not None, engine.prefix_refusal
        prefix_batches = [
            replace(batch, prefix_states=engine.compute_prefix_states(prefix, batch.input_ids)) for batch in batches
        ]
        synchronize(self.proxy.device)
        self.prefix_seconds = time.perf_counter() - started
        return Method(_measure_by(engine), prefix_batches, last_layers, self._recorded_passes)

    @property
    def _recorded_passes(self) -> int:
        return 2 if can_record(self.proxy.device) else 0

    def _fused_engine(self, layers: str, record_statistics: bool) -> FusedEngine:
        model = self.proxy.model(layers, "fused")
        engine = FusedEngine(model, ResponseNLL(), NO_LIMIT, record_statistics=record_statistics)
        engine.to(self.proxy.device)
        if self.options.tokens == "auto":
            longest = int(self.proxy.examples.lengths.max())
            adapters = self.proxy.adapters(model, layers)
            engine.chunk_tokens = find_fitting_tokens(engine, adapters, longest, self.proxy.device)
        else:
            engine.chunk_tokens = int(self.options.tokens)
        return engine

    def _time(self, method: Method) -> None:
        """Go through the method's batches once, after batches that are not timed."""
        device = self.proxy.device
        adapters = self.proxy.adapters(self.proxy.model(method.layers, "fused"), method.layers)
        return_memory(device)
        reset_peak_memory(device)
        untimed_batches = method.batches[:1]
        if not method.seconds:
            untimed_batches = [*untimed_batches, *method.untimed_passes * method.batches]
        for batch in untimed_batches:
            method.measure(adapters, batch)
        synchronize(device)
        started, cpu_started = time.perf_counter(), time.process_time()
        norms = [method.measure(adapters, batch) for batch in method.batches]
        synchronize(device)
        method.seconds.append(time.perf_counter() - started)
        method.cpu_seconds.append(time.process_time() - cpu_started)
        method.peak = max(method.peak, peak_memory_bytes(device) / 2**20)
        for batch, batch_norms in zip(method.batches, norms, strict=True):
            if batch_norms.numel():
                method.norms.update(zip(batch.example_id.tolist(), batch_norms.T.double().cpu(), strict=True))

    def _describe(self, methods: dict[str, Method]) -> dict[str, Any]:
        """Gather what is printed and written."""
        row_passes = len(self.proxy.examples) * self.proxy.members
        references = {method.layers: method for name, method in methods.items() if name.startswith("loop")}
        figures: dict[str, Any] = {
            "device": describe_device(self.proxy.device),
            "precision": self.precision,
            "members": self.proxy.members,
            "rows": len(self.proxy.examples),
            "longest_row": int(self.proxy.examples.lengths.max()),
            "layers": self.layer_count,
            "prefix_layers": self.prefix_layers,
            "prefix_seconds": round(self.prefix_seconds, 3),
            "methods": {},
            "left_out": self.left_out,
        }
        for name, method in methods.items():
            seconds = median(method.seconds)
            figures["methods"][name] = {
                "seconds": round(seconds, 3),
                "cpu_seconds": round(median(method.cpu_seconds), 3),
                "rows_per_s": round(row_passes / seconds, 2),
                "peak_mb": round(method.peak),
                "max_relative_difference": _largest_difference(method, references.get(method.layers)),
            }
        if "fused" in methods:
            fused_seconds = median(methods["fused"].seconds)
            figures["faster_than_fused"] = [
                name
                for name in ("loop", *OTHER_PEOPLES_METHODS)
                if name in methods and median(methods[name].seconds) < fused_seconds
            ]
        return figures

    def _describe_peak(self, methods: dict[str, Method], gemm_rate: float) -> dict[str, float]:
        """Give the rate of the matrix product, and the fused engine's share of it; nothing where it is not measured."""
        if not gemm_rate:
            return {}
        figures = {"gemm_peak_tflops": round(gemm_rate / 1e12, 3)}
        if "fused" in methods:
            rate = self._count_operations() / median(methods["fused"].seconds)
            figures["fused_share_of_peak"] = round(rate / gemm_rate, 3)
        return figures

    def _count_operations(self) -> float:
        """Count the arithmetic that must be done for all rows and members."""
        examples = self.proxy.examples
        head_weights = int(self.proxy.plain_model.get_output_embeddings().weight.numel())
        other_weights = count_matmul_weights(self.proxy.plain_model) - head_weights
        response_tokens = int(examples.response_tokens.sum())
        return 4.0 * self.proxy.members * (other_weights * examples.tokens + head_weights * response_tokens)


def _measure_by(engine: GradientEngine) -> MeasureNorms:
    """Measure as a training step does."""
    return lambda adapters, batch: engine.measure(adapters, batch, with_mean_gradient=True).grad_norm


def _train_by(engine: GradientEngine) -> MeasureNorms:
    """Take the same step without per-example statistics, so that there are no norms to return."""

    def measure(adapters: Adapters, batch: Batch) -> Tensor:
        engine.measure(adapters, batch, with_mean_gradient=True)
        return torch.empty(0)

    return measure


def return_memory(device: torch.device) -> None:
    """Give freed memory back to the system, so that the peak that follows is the method's own."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        return_freed_memory()


def measure_gemm_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the best rate of a square matrix product, in operations a second."""
    left, right = (torch.randn(GEMM_WIDTH, GEMM_WIDTH, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    fastest = float("inf")
    for _ in range(GEMM_REPEATS):
        synchronize(device)
        started = time.perf_counter()
        torch.mm(left, right, out=product)
        synchronize(device)
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * GEMM_WIDTH**3 / fastest


def _largest_difference(method: Method, reference: Method | None) -> float | None:
    """Return the largest relative difference of a norm; None without norms or a loop over the same layers."""
    if reference is None or not method.norms:
        return None
    differences = [
        float((norms / reference.norms[example_id] - 1).abs().max()) for example_id, norms in method.norms.items()
    ]
    return float(f"{max(differences):.2g}")


if __name__ == "__main__":
    main()
