"""Speed of this machine with the run's own model, engine and rows: a few seconds of the work itself."""

import hashlib
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradfiltering.data.batches import Batch, make_batch
from gradfiltering.data.examples import Examples
from gradfiltering.ensembles.stack_state import StackState
from gradfiltering.ensembles.trained_ensemble import TrainedEnsemble
from gradfiltering.evidence.base_model_passes import prepare_base_model
from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.finetuning.fine_tune import attach_untrained_adapter, recompute_if_asked
from gradfiltering.finetuning.settings import FineTuningSettings
from gradfiltering.gradients.adam_direction import MOMENT_NAMES
from gradfiltering.gradients.memory import ChunkMemory, fit_chunk_memory
from gradfiltering.judging.generation import generate_batch, plain_decoding
from gradfiltering.models.causal_model import split_model
from gradfiltering.models.language_model import LanguageModel
from gradfiltering.models.lora import Adapters
from gradfiltering.models.objectives import Objective, ResponseNLL
from gradfiltering.planning.model_shapes import ModelShape, read_shape
from gradfiltering.planning.operations import (
    TokenCounts,
    forward_operations,
    frozen_operations,
    generation_operations,
    gradient_operations,
    loss_operations,
)
from gradfiltering.planning.row_passes import count_prompts

SECONDS = 1.0  # for each kind of work, the first and unmeasured run included; two runs may take longer
REPEATS = 5
TIMED_TOKENS = 512  # padded tokens of a batch that is timed, over members, where that is a row at least
GPU_TIMED_TOKENS = 32768
NEW_TOKENS = 6

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Speed:
    """Operations per second by kind of work, and what each step costs beside them.

    Attributes:
        rates: kind of work -> floating-point operations per second.
        update_seconds: of the optimiser and the loop around a training step of the ensemble.
        seconds: that the measurements made in this run took; 0 where all were in the cache.
        measured_at: of the oldest measurement that the cache had, in seconds since 1970; None where all are new.
        engine_seconds: of an engine's check, before its first batch.
        storing_seconds: of one trained member, at one snapshot.
    """

    rates: dict[str, float]
    update_seconds: float
    seconds: float
    measured_at: float | None = None
    engine_seconds: float = 0.0
    storing_seconds: float = 0.0

    def estimate(self, kind: str, operations: int, steps: int) -> float:
        """Return the seconds of some work.

        Args:
            kind: `training`, `gradients`, `losses`, `tuning` or `answers`; one that was not timed counts as the
                nearest that was.
            operations: of the work.
            steps: of training.
        """
        nearest = {"training": "gradients", "tuning": "gradients", "answers": "losses"}
        rate = self.rates.get(kind) or self.rates[nearest.get(kind, kind)]
        return operations / rate + (steps * self.update_seconds if kind in ("training", "tuning") else 0.0)


@dataclass(frozen=True)
class MeasuredWork:
    """Measured speed and memory of a kind of work without members.

    Attributes:
        rate: floating-point operations per second.
        memory: of its batches.
    """

    rate: float
    memory: ChunkMemory

    def to_json(self) -> dict[str, Any]:
        """Return it as the cache keeps it."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "MeasuredWork":
        """Read what `to_json` returned."""
        return cls(float(content["rate"]), ChunkMemory(**content["memory"]))


def measure_losses(context: MeasurementContext, shape: ModelShape) -> MeasuredWork:
    """Measure the base model's losses without gradients, on a batch of real rows."""
    causal_model = split_model(prepare_base_model(context))
    token_budget = min(_timed_tokens(context.device), context.batches.forward_tokens(context.device))

    def measure(batch: Batch, objective: Objective) -> None:
        with torch.no_grad():
            objective(causal_model, batch.to(context.device))

    batch = take_batch(context.examples, token_budget, context.base_model.pad_id)
    operations = loss_operations(shape, count_batch(batch))
    return MeasuredWork(
        rate=time_work(lambda: measure(batch, context.objective), operations, context.device),
        memory=_fit_memory(lambda row: measure(row, ResponseNLL()), context.base_model, context.examples),
    )


def time_gradients(trained_ensemble: TrainedEnsemble, shape: ModelShape, batch_tokens: int) -> float:
    """Return operations per second of a stack's gradients on a chunk of real rows."""
    member_ids = list(trained_ensemble.settings.trained_member_ids)
    device = trained_ensemble.device
    adapters = {name: value.to(device) for name, value in trained_ensemble.load_state(member_ids, 0).adapters.items()}
    row_tokens = max(1, min(batch_tokens, _timed_tokens(device)) // len(member_ids))
    batch = take_batch(trained_ensemble.examples, row_tokens, trained_ensemble.base_model.pad_id).to(device)
    counts, engine = count_batch(batch).times(len(member_ids)), trained_ensemble.engine
    operations = gradient_operations(shape, counts, engine.name == "fused")
    if engine.prefix is not None:  # its layers are gone through once for all members of a batch
        frozen = frozen_operations(shape, counts)
        operations += frozen // len(member_ids) - frozen
    return time_work(lambda: engine.measure(adapters, batch, with_mean_gradient=True), operations, device)


def time_engine(trained_ensemble: TrainedEnsemble) -> float:
    """Return the seconds that an engine takes before its first batch: it is compared with one row at a time."""
    started_at = time.perf_counter()
    trained_ensemble.engine.to(trained_ensemble.device)
    return time.perf_counter() - started_at


def time_storing(adapters: Adapters) -> float:
    """Return the seconds of storing one of the stacked members: its state, read again for its checksum.

    It is written twice, as the state of the stack is kept until all of its members are stored.
    """
    one_member = {name: stacked[:1].detach() for name, stacked in adapters.items()}
    moments = {
        moment_name: {name: torch.zeros_like(stacked) for name, stacked in one_member.items()}
        for moment_name in MOMENT_NAMES
    }
    state = StackState(one_member, moments, steps=1)
    with tempfile.TemporaryDirectory() as folder_name:
        path = Path(folder_name) / "state.safetensors"
        started_at = time.perf_counter()
        state.write(path)
        hashlib.sha256(path.read_bytes()).digest()
        return 2 * (time.perf_counter() - started_at)


def time_update(adapters: Adapters) -> float:
    """Return the seconds of one step of the optimiser over stacked adapters."""
    parameters = [torch.nn.Parameter(stacked.clone()) for stacked in adapters.values()]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-4)
    optimizer = torch.optim.AdamW(parameters, lr=1e-6)
    device = parameters[0].device
    return 1 / time_work(optimizer.step, 1, device)


def measure_tuning(context: MeasurementContext, settings: FineTuningSettings) -> MeasuredWork:
    """Measure a target's micro-batch, with an adapter of its own on the base model."""
    base_model, examples, device = context.base_model, context.examples, context.device
    prepare_base_model(context)
    with attach_untrained_adapter(base_model, settings, seed=0) as model, recompute_if_asked(model, settings):
        shape = read_shape(model)
        token_budget = min(_timed_tokens(device), settings.micro_batch_tokens)
        batch = take_batch(examples, token_budget, base_model.pad_id).to(device)

        split = split_model(model)

        def train(batch: Batch, objective: Objective) -> None:
            with torch.enable_grad():
                objective(split, batch.to(device)).sum().backward()
            model.zero_grad()

        counts = count_batch(batch)
        operations = gradient_operations(shape, counts, responses_only=True)
        if settings.gradient_checkpointing:
            operations += forward_operations(shape, counts, with_adapters=True)
        return MeasuredWork(
            rate=time_work(lambda: train(batch, context.objective), operations, device),
            memory=_fit_memory(lambda row: train(row, ResponseNLL()), base_model, examples),
        )


def time_answers(context: MeasurementContext, prompt_lengths: Sequence[int]) -> float:
    """Return operations per second of generation, for a batch of prompts as large as they come."""
    base_model, examples = context.base_model, context.examples
    prepare_base_model(context)
    width = int(np.median(prompt_lengths))
    token_ids = examples.table[int(np.argsort(examples.lengths)[len(examples) // 2])]["input_ids"]
    prompt = (token_ids * (width // len(token_ids) + 1))[:width]
    prompts = [prompt] * len(prompt_lengths)
    shape = read_shape(base_model.model)
    with plain_decoding(base_model.model):
        generate_batch(base_model.model, base_model.tokenizer, prompts[:1], 1)  # kernels are chosen
        started_at = time.perf_counter()
        new_tokens = generate_batch(base_model.model, base_model.tokenizer, prompts, NEW_TOKENS)
        _wait_for(context.device)
        seconds = time.perf_counter() - started_at
    step_count = max(len(token_ids) for token_ids, _ in new_tokens)
    counts = count_prompts([width] * len(prompts))
    return generation_operations(shape, counts, len(prompts), step_count) / seconds


def _fit_memory(measure_row: Callable[[Batch], None], base_model: LanguageModel, examples: Examples) -> ChunkMemory:
    """Measure what batches take by three rows of few tokens; sequences of a pair take as much as so many rows."""
    model: Any = base_model.model
    return fit_chunk_memory(measure_row, int(examples.widths.max()), model.get_output_embeddings().weight)


def take_batch(examples: Examples, token_budget: int, pad_id: int) -> Batch:
    """Return a batch of rows of about the median length, as many as the tokens allow."""
    if examples.is_paired and examples.reference_nll is None:  # not measured before the plan; no time depends on it
        examples = replace(examples, reference_nll=np.zeros((len(examples), 2)))
    rows_by_length = np.argsort(examples.widths, kind="stable")
    middle = len(rows_by_length) // 2
    width = max(1, int(examples.sequence_count * examples.widths[rows_by_length[middle]]))
    row_count = min(len(rows_by_length), max(1, token_budget // width))
    start = max(0, middle - row_count + 1)
    row_positions = rows_by_length[start : start + row_count]
    return make_batch(examples, row_positions, pad_id, (row_count,))


def count_batch(batch: Batch) -> TokenCounts:
    """Count a batch of [B, T] or [B, 2, T] tokens as it is, its padding included."""
    row_count, width, padded = len(batch.input_ids), batch.input_ids.shape[-1], batch.input_ids.numel()
    responses = int((batch.labels[..., 1:] >= 0).sum())
    return TokenCounts(row_count, padded, padded, padded * width, responses, 1)


def time_work(compute: Callable[[], object], operations: int, device: torch.device) -> float:
    """Return operations per second: the median of a few runs after a first one, at least of one.

    The first run is not counted: it takes up to half as long again, as memory is asked for and kernels are chosen.
    """
    first_seconds = _time_once(compute, device)
    run_seconds = [_time_once(compute, device)]
    while len(run_seconds) < REPEATS and first_seconds + sum(run_seconds) < SECONDS:
        run_seconds.append(_time_once(compute, device))
    return operations / statistics.median(run_seconds)


def _timed_tokens(device: torch.device) -> int:
    """Return the most tokens of a batch that is timed: a GPU is fast, and only with many."""
    return GPU_TIMED_TOKENS if device.type == "cuda" else TIMED_TOKENS


def _time_once(compute: Callable[[], object], device: torch.device) -> float:
    _wait_for(device)
    started_at = time.perf_counter()
    compute()
    _wait_for(device)
    return time.perf_counter() - started_at


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
