"""Choice of the engine by what the model does."""

import logging

import pytest
import torch
from torch import nn

from gradfiltering.errors import UserError
from gradfiltering.gradients.auto import choose_engine
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.gradients.vmap import VmapEngine
from gradfiltering.models.lora import LoraSettings
from gradfiltering.models.objectives import ResponseNLL
from tests.support.architectures import exact_arithmetic, small_model

CPU = torch.device("cpu")


class MaskedLinear(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs * (torch.arange(self.in_features) % 2))


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_fused_where_it_serves(make_model, make_adapters, caplog, architecture):
    model, _, _ = make_adapters(make_model(architecture))
    with caplog.at_level(logging.INFO, "gradfiltering"):
        assert choose_engine(model, ResponseNLL(), 1000).name == "fused"
    assert "by the fused engine" in caplog.text
    assert model.get_base_model().config._attn_implementation == "eager", "a trial left its traces"


def test_a_layer_that_is_more_than_linear_is_left_to_vmap(make_model, make_adapters, caplog):
    base_model = make_model("llama")
    layer = base_model.model.layers[0].mlp.down_proj
    layer.__class__ = MaskedLinear
    model, _, _ = make_adapters(base_model)
    with caplog.at_level(logging.INFO, "gradfiltering"):
        engine = choose_engine(model, ResponseNLL(), 1000)
    assert engine.name == "vmap" and "down_proj is a MaskedLinear" in caplog.text


def test_a_model_that_no_engine_serves_is_refused_with_both_reasons(make_adapters):
    with exact_arithmetic():
        model, _, _ = make_adapters(small_model("mixtral"), targets=["q_proj", "w1", "w2", "w3"])
        with pytest.raises(UserError) as refusal:
            choose_engine(model, ResponseNLL(), 1000)
    message = str(refusal.value)
    assert "fused: the adapted module" in message and "vmap: torch.func cannot" in message
    assert "Adapt only linear layers that every token goes through once" in message


def test_an_engine_asked_for_by_name_is_refused_with_a_way_out(make_model, make_adapters):
    base_model = make_model()
    base_model.transformer.h[1].mlp = base_model.transformer.h[0].mlp
    model, _, _ = make_adapters(base_model)
    with pytest.raises(UserError, match=r"is used twice.*; let the engine be chosen automatically") as refusal:
        FusedEngine(model, ResponseNLL(), 1000).to(CPU)
    assert "vmap" not in str(refusal.value), "vmap might refuse the model as well"


@pytest.mark.parametrize("engine_class", [FusedEngine, VmapEngine])
def test_attention_that_was_asked_for_stays_eager(engine_class, make_model, make_adapters):
    model, _, _ = make_adapters(make_model("llama"))
    engine_class(model, ResponseNLL(), 1000).to(CPU)
    assert model.get_base_model().config._attn_implementation == "eager"


@pytest.mark.parametrize("engine_class", [FusedEngine, VmapEngine])
def test_a_model_whose_tokens_see_later_ones_is_refused(engine_class, make_adapters):
    from transformers import BertConfig, BertLMHeadModel

    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    encoder = (
        BertLMHeadModel(BertConfig(**sizes, intermediate_size=24, initializer_range=0.5))
        .double()
        .eval()
        .requires_grad_(False)
    )
    model, _, _ = make_adapters(encoder)
    with pytest.raises(UserError, match=r"in BertLMHeadModel a token sees later ones.*is_decoder=true"):
        engine_class(model, ResponseNLL(), 1000).to(CPU)


def test_a_model_that_selects_tokens_is_refused(make_adapters):
    """Among tokens of equal scores the padded length decides: norms of A.X K2 were off by 22 %."""
    with exact_arithmetic():
        model, _, _ = make_adapters(small_model("axk2"))
        with pytest.raises(UserError, match=r"a row's gradient would depend on its batch; choose another model"):
            choose_engine(model, ResponseNLL(), 1000)


class ScrambledEngine(FusedEngine):
    """Gives each example the gradient of its neighbour."""

    def _measure_chunk(self, adapters, batch, accumulator):
        add = accumulator.add
        accumulator.add = lambda name, gradients: add(name, gradients.flip(1))
        return super()._measure_chunk(adapters, batch, accumulator)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_an_engine_that_computes_wrongly_is_refused(make_model, make_adapters, dtype):
    model, _, _ = make_adapters(make_model("llama", dtype))
    FusedEngine(model, ResponseNLL(), 1000).to(CPU)
    with pytest.raises(UserError, match=r"differ from those of one row at a time by [12] of"):
        ScrambledEngine(model, ResponseNLL(), 1000).to(CPU)


def test_layers_that_take_no_part_have_no_gradient(make_batch):
    with exact_arithmetic():
        settings = LoraSettings(rank=2, alpha=4, target_modules="all-linear", init_b_std=0.1)
        model = settings.attach(small_model("bart"))  # its decoder alone leaves cross-attention out
        adapters = {name: p.detach()[None] for name, p in model.named_parameters() if p.requires_grad}
        engine = FusedEngine(model, ResponseNLL(), 1000)
        engine.to(CPU)
        gradient = engine.measure(adapters, make_batch([9, 6], [3, 2]), True).mean_gradient
    unused = {name for name, value in gradient.items() if not value.any()}
    assert unused and gradient.keys() == adapters.keys()
    assert {name.split(".")[-4] for name in unused if "lora_B" in name} == {"q_proj", "k_proj", "v_proj", "out_proj"}


def test_a_layer_used_twice_is_left_to_vmap(make_model, make_adapters):
    base_model = make_model()
    blocks = base_model.transformer.h
    blocks[1].mlp = blocks[0].mlp
    model, _, _ = make_adapters(base_model)
    assert choose_engine(model, ResponseNLL(), 1000).name == "vmap"


def test_variants_of_lora_are_left_to_vmap(make_model):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(make_model("llama"), LoraConfig(target_modules=["q_proj"], use_dora=True))
    assert choose_engine(model, ResponseNLL(), 1000).name == "vmap"
