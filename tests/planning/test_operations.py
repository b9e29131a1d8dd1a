"""Planned operations are those that PyTorch counts in the same work."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from gradfiltering.data.batches import IGNORED, Batch
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.gradients.vmap import VmapEngine
from gradfiltering.models.causal_model import split_model
from gradfiltering.models.lora import LoraSettings, initial_adapters
from gradfiltering.models.objectives import ResponseNLL
from gradfiltering.planning.model_shapes import read_shape
from gradfiltering.planning.operations import (
    TokenCounts,
    frozen_operations,
    generation_operations,
    gradient_operations,
    loss_operations,
)
from tests.support.operation_counter import OperationCounter

MEMBERS, ROWS, TOKENS, RESPONSE = 3, 4, 40, 13
COUNTS = TokenCounts(ROWS, ROWS * TOKENS, ROWS * TOKENS, ROWS * TOKENS**2, ROWS * RESPONSE, 1)
CPU = torch.device("cpu")
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0}
MODELS = {
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(n_layer=3, n_head=4, n_embd=64, vocab_size=500, n_positions=128, **SPECIAL)
    ),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, hidden_size=64, intermediate_size=160,
            vocab_size=500, max_position_embeddings=128, **SPECIAL,
        )
    ),
}  # fmt: skip


@pytest.fixture(params=MODELS)
def base_model(request):
    return MODELS[request.param]().eval().requires_grad_(False)


def random_batch(members=None):
    shape = (ROWS, TOKENS) if members is None else (members, ROWS, TOKENS)
    input_ids = torch.randint(500, shape, generator=torch.Generator().manual_seed(0))
    labels = input_ids.clone()
    labels[..., : TOKENS - RESPONSE] = IGNORED
    return Batch(input_ids, labels, torch.arange(ROWS).expand(shape[:-1]))


def assert_close(planned, counter, tolerance=0.01):
    assert counter.operations > 1e6
    assert planned == pytest.approx(counter.operations, rel=tolerance)


def attach(base_model, **changes):
    settings = LoraSettings(**{"rank": 8, "alpha": 16, "target_modules": "all-linear", "init_b_std": 0.02, **changes})
    model = settings.attach(base_model)
    return model, initial_adapters(model, settings, range(MEMBERS), 0)


@pytest.mark.parametrize("with_mean_gradient", [True, False], ids=["training", "snapshot"])
def test_gradients_of_members(base_model, with_mean_gradient):
    model, adapters = attach(base_model)
    engine = FusedEngine(model, ResponseNLL(), 10**6)
    engine.to(CPU)
    with OperationCounter() as counter:
        engine.measure(adapters, random_batch(MEMBERS), with_mean_gradient)
    assert_close(gradient_operations(read_shape(model), COUNTS.times(MEMBERS)), counter)


def test_gradients_with_chunks_of_one_row(base_model):
    model, adapters = attach(base_model)
    engine = FusedEngine(model, ResponseNLL(), TOKENS)
    engine.to(CPU)
    engine.measure(adapters, random_batch(MEMBERS), True)
    with OperationCounter() as counter:
        engine.measure(adapters, random_batch(MEMBERS), True)
    assert_close(gradient_operations(read_shape(model), COUNTS.times(MEMBERS)), counter)


def test_gradients_of_the_upper_layers_alone(base_model):
    """The two layers below are gone through once for all members, and have no backward."""
    model, adapters = attach(base_model, layers="last_1")
    engine = FusedEngine(model, ResponseNLL(), 10**6)
    engine.to(CPU)
    assert engine.prefix is not None and read_shape(model).first_adapted_layer == 2
    shape, counts = read_shape(model), COUNTS.times(MEMBERS)
    with OperationCounter() as counter:
        engine.measure(adapters, random_batch(), True)
    frozen = frozen_operations(shape, counts)
    assert_close(gradient_operations(shape, counts) - frozen + frozen // MEMBERS, counter)


def test_gradients_of_some_matrices(base_model):
    names = ["c_attn"] if base_model.config.model_type == "gpt2" else ["q_proj", "down_proj"]
    model, adapters = attach(base_model, target_modules=names)
    engine = FusedEngine(model, ResponseNLL(), 10**6)
    engine.to(CPU)
    with OperationCounter() as counter:
        engine.measure(adapters, random_batch(MEMBERS), True)
    # In the first layer keys and values need no gradient, which is not looked at.
    assert_close(gradient_operations(read_shape(model), COUNTS.times(MEMBERS)), counter, tolerance=0.02)


def test_losses_of_the_base_model(base_model):
    causal_model = split_model(base_model)
    with torch.inference_mode(), OperationCounter() as counter:
        ResponseNLL()(causal_model, random_batch())
    assert_close(loss_operations(read_shape(base_model), COUNTS), counter)


def test_a_step_of_the_target(base_model):
    model, _ = attach(base_model)
    causal_model = split_model(model)
    with OperationCounter() as counter:
        ResponseNLL()(causal_model, random_batch()).sum().backward()
    # The fused attention of a CPU computes the scores once more in its backward.
    assert_close(gradient_operations(read_shape(model), COUNTS), counter, tolerance=0.03)
    assert read_shape(model) == read_shape(model.unload()).with_adapters(8)


@pytest.mark.parametrize("layers", ["last_1", 0.5, [1]])
def test_the_shape_has_adapters_in_the_chosen_layers_alone(base_model, layers):
    model, _ = attach(base_model, layers=layers)
    assert read_shape(model) == read_shape(model.unload()).with_adapters(8, layers)


@pytest.mark.parametrize("new_tokens", [1, 9])
def test_answers(base_model, new_tokens):
    model, _ = attach(base_model)
    prompts = random_batch().input_ids
    options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad(), OperationCounter() as counter:
        model.generate(input_ids=prompts, attention_mask=torch.ones_like(prompts), **options)
    assert_close(generation_operations(read_shape(model), COUNTS, ROWS, new_tokens), counter)


def test_all_logits_of_the_vmap_engine(base_model):
    model, adapters = attach(base_model)
    engine = VmapEngine(model, ResponseNLL(), 10**6)
    engine.to(CPU)
    with OperationCounter() as counter:
        engine.measure(adapters, random_batch(MEMBERS), True)
    assert_close(gradient_operations(read_shape(model), COUNTS.times(MEMBERS), responses_only=False), counter, 0.05)


def test_shape_of_an_empty_model_is_that_of_the_loaded_one():
    with torch.device("meta"):
        empty = LlamaForCausalLM(MODELS["llama"]().config)
    assert read_shape(empty) == read_shape(MODELS["llama"]())
    assert read_shape(empty).matmul_weights == 64 * 500 + 3 * (64 * (64 * 2 + 32 * 2) + 3 * 64 * 160)
