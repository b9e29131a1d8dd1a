"""Memory of planned batches: fitted to a few small rows, and right for the large batches of the run."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from gradfiltering.data.batches import LengthBatches
from gradfiltering.evidence.base_model_passes import prepare_base_model
from gradfiltering.finetuning.fine_tune import attach_untrained_adapter, recompute_if_asked
from gradfiltering.finetuning.training_sets import TrainingSet
from gradfiltering.gradients.memory import ChunkMemory, LiveBytes
from gradfiltering.models.causal_model import split_model
from gradfiltering.models.objectives import ResponseNLL
from gradfiltering.planning import memory_estimates
from gradfiltering.planning.calibration import measure_losses, measure_tuning, time_answers
from gradfiltering.planning.model_shapes import read_shape
from gradfiltering.planning.planner import plan_run
from gradfiltering.planning.target_work import PlannedModel
from gradfiltering.requests import BaseModelLosses
from gradfiltering.runs.memory import MOST_FREED_BYTES
from tests.planning.test_planner import TUNING, tuned
from tests.support.plans import WANTED, plan_request

CPU = torch.device("cpu")
LOGITS_SHARE = 0.25  # of what a batch takes, at most: every third token counts as one of a response


def widest_batches(context, tokens):
    batches = LengthBatches(context.examples, tokens, context.base_model.pad_id)
    return [batches[index] for index in range(len(batches))]


@pytest.mark.parametrize("batch_tokens", [400, 3000])
def test_losses_take_the_memory_that_was_estimated(context, batch_tokens):
    shape = read_shape(context.base_model.model)
    memory = measure_losses(context, shape).memory
    model = split_model(prepare_base_model(context))
    peaks = []
    for batch in widest_batches(context, batch_tokens):
        with LiveBytes() as live_bytes, torch.inference_mode():
            ResponseNLL()(model, batch)
        peaks.append(live_bytes.peak)
    estimated = memory_estimates.losses_bytes(shape, batch_tokens, context.examples, memory, "cpu")
    assert max(peaks) <= estimated < 1.7 * max(peaks), "logits count beside the layers, which have ended by then"


@pytest.mark.parametrize("recomputes_layers", [False, True])
def test_fine_tuning_takes_the_memory_that_was_estimated(context, recomputes_layers):
    settings = replace(TUNING, gradient_checkpointing=recomputes_layers, batch_size=32, micro_batch_tokens=3000)
    base_model, examples = context.base_model, context.examples
    memory = measure_tuning(context, settings).memory
    target = tuned(context, settings=settings)
    models = {"full": PlannedModel(TrainingSet(examples.example_ids.tolist()), None)}
    _, estimated = memory_estimates.tuning_bytes(target, models, examples, context.seed, memory)
    largest = max(
        memory_estimates.list_micro_batches(examples, settings, context.seed, "cpu", None, 200),
        key=lambda row_positions: len(row_positions) * examples.widths[row_positions].max(),
    )
    batch = LengthBatches(examples, 1 << 20, base_model.pad_id, largest)[0]
    with attach_untrained_adapter(base_model, settings, 0) as model, recompute_if_asked(model, settings):
        split = split_model(model)
        with LiveBytes() as live_bytes:
            ResponseNLL()(split, batch).sum().backward()
    assert estimated == pytest.approx(live_bytes.peak, rel=LOGITS_SHARE)


@pytest.mark.parametrize(
    "measure", [partial(measure_tuning, settings=TUNING), partial(time_answers, prompt_lengths=[9])]
)
def test_a_model_is_moved_to_the_device_before_its_work_is_timed(context, monkeypatch, measure):
    """Where the speed of the losses is known already, nothing has moved it."""
    model, devices = context.base_model.model, []
    move = model.to
    monkeypatch.setattr(model, "to", lambda device: devices.append(device) or move(device))
    measure(context)
    assert devices[0] == context.device


def test_recomputing_layers_takes_less_memory(context):
    memories = [
        measure_tuning(context, replace(TUNING, gradient_checkpointing=recomputes)).memory
        for recomputes in (False, True)
    ]
    assert memories[1].peak(2000, 40, 1) < 0.8 * memories[0].peak(2000, 40, 1)


def test_gaps_of_the_heap_are_as_large_as_a_batch_up_to_what_is_returned():
    assert memory_estimates.held_bytes(CPU, 10, 100) == 210
    assert memory_estimates.held_bytes(CPU, 10, 3 * MOST_FREED_BYTES) == 10 + 4 * MOST_FREED_BYTES
    assert memory_estimates.held_bytes(torch.device("cuda"), 10, 100) == 110


def test_a_trained_model_in_the_cache_needs_no_batch(context, tmp_path):
    models = {"full": PlannedModel(TrainingSet(context.examples.example_ids.tolist()), tmp_path)}
    memory = ChunkMemory(0, 1000, 1, 0)
    _, batch_bytes = memory_estimates.tuning_bytes(tuned(context), models, context.examples, context.seed, memory)
    assert batch_bytes == 0


def test_each_stage_of_a_plan_has_its_own_peak(context):
    """A stage begins with the memory that the one before has freed returned, so a small one after a large is small."""
    small_target = tuned(context, prompt_lengths=[4], settings=replace(TUNING, micro_batch_tokens=5000, batch_size=64))
    plan = plan_run(plan_request(context, BaseModelLosses(), target=small_target), WANTED)
    peaks = {stage.name: stage.peak_bytes for stage in plan.stages}
    assert peaks["target"] > peaks["judge"] > 0


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_generation_keeps_the_keys_and_values_of_each_layer(key_heads):
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=key_heads, vocab_size=50,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    cache = model(torch.zeros(1, 5, dtype=torch.int64), use_cache=True).past_key_values
    kept_numbers = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert sum(layer.cache_width for layer in read_shape(model).layers) * 5 == kept_numbers


def test_generation_keeps_both_thirds_of_a_joint_projection():
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50))
    assert [layer.cache_width for layer in read_shape(model).layers] == [64, 64]
