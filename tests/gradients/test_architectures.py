"""Language models beyond GPT-2 and LLaMA: where adapters go, gradients, and clear words where it cannot be done."""

import sys

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    MambaConfig,
    MistralConfig,
    MptConfig,
    PretrainedConfig,
    Qwen2Config,
)

from gradfiltering.errors import UserError
from gradfiltering.gradients.vmap import VmapEngine
from gradfiltering.models.language_model import find_context_length
from gradfiltering.models.objectives import ResponseNLL
from tests.reference.gradients import loop_gradients, norm

RTOL = 1e-6  # some of them compute attention in float32 whatever their weights are
UNLIMITED = 10**30  # what a tokenizer says that knows no limit
SIZE = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "attn_implementation": "eager",
}  # fmt: skip
ATTENTION, MLP = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}
BLOOM = BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2, attn_implementation="eager")
MAMBA = MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4, time_step_rank=4)
LOCAL = [[["global", "local"], 1]]
NEO = GPTNeoConfig(
    vocab_size=64, hidden_size=16, num_layers=2, num_heads=2, attention_types=LOCAL, max_position_embeddings=32
)


class Tokenizer:
    def __init__(self, model_max_length: int):
        self.model_max_length = model_max_length


def build(config: PretrainedConfig):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).double().eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (MistralConfig(**SIZE, num_key_value_heads=1), ATTENTION | MLP),
        (Qwen2Config(**SIZE, num_key_value_heads=1), ATTENTION | MLP),
        (GPTNeoXConfig(**SIZE), {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
        (NEO, {"q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"}),
    ],
    ids=lambda value: value.model_type if isinstance(value, PretrainedConfig) else "",
)
def test_all_linear_finds_all_layers_and_vmap_equals_the_loop(config, layers, make_adapters, make_batch):
    model, adapters, _ = make_adapters(build(config), members=(0, 1))
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in adapters} == layers
    batch = make_batch([9, 5, 7], [3, 2, 4], members=2)
    measured = VmapEngine(model, ResponseNLL(), 10_000).measure(adapters, batch, with_mean_gradient=True)
    unused = [name for name, value in measured.mean_gradient.items() if not value.flatten(1).any(1).all()]
    assert unused == [], "adapters without a gradient take no part in the model"
    for member in range(2):
        own = {name: value[member] for name, value in adapters.items()}
        for row, length in enumerate((9, 5, 7)):
            ids, labels = batch.input_ids[member, row, :length], batch.labels[member, row, :length]
            loss, gradient = loop_gradients(model, own, ids, labels)
            assert float(measured.loss[member, row]) == pytest.approx(loss, rel=RTOL)
            assert float(measured.grad_norm[member, row]) == pytest.approx(float(norm(gradient)), rel=RTOL)


def test_a_model_that_torch_func_cannot_take_is_refused_by_name(make_adapters, make_batch):
    model, adapters, _ = make_adapters(build(BLOOM), members=(0, 1))
    name = type(model.get_base_model()).__name__
    engine = VmapEngine(model, ResponseNLL(), 10_000)
    for compute in (
        lambda: engine.to(torch.device("cpu")),
        lambda: engine.measure(adapters, make_batch([9], [3]), True),
    ):
        with pytest.raises(UserError, match=rf"torch\.func cannot take per-example gradients of {name},") as refusal:
            compute()
        assert "fused" not in str(refusal.value), "the fused engine may refuse the model as well"


def test_layers_that_must_not_be_adapted_are_named(make_adapters):
    with pytest.raises(UserError, match=r"target_modules is all-linear: .*out_proj.* Give a list of module name"):
        make_adapters(build(MAMBA))


@pytest.mark.parametrize(
    ("config", "tokenizer", "expected"),
    [
        (GPT2Config(n_positions=48), UNLIMITED, 48),
        (NEO, UNLIMITED, 32),
        (MptConfig(max_seq_len=96), UNLIMITED, 96),
        (PretrainedConfig(n_ctx=24), 512, 24),
        (PretrainedConfig(max_position_embeddings=-1), 512, 512),
        (BLOOM, 2048, 2048),
        (BLOOM, UNLIMITED, sys.maxsize),
        (MAMBA, UNLIMITED, sys.maxsize),
    ],
)
def test_context_length_of_model_else_tokenizer_else_unlimited(config, tokenizer, expected):
    assert find_context_length(config, Tokenizer(tokenizer)) == expected
