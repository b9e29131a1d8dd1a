"""Choice of the engine by what the model does."""

import logging

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, OPTConfig

from gradfiltering.errors import UserError
from gradfiltering.gradients.auto import choose_engine
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.models.objectives import ResponseNLL

SIZES = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TOKENS = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}


def opt():  # flattens hidden states before its MLP
    config = OPTConfig(**SIZES, **TOKENS, ffn_dim=24, max_position_embeddings=32, word_embed_proj_dim=16)
    return AutoModelForCausalLM.from_config(config)


def gemma2():  # caps its attention scores
    config = Gemma2Config(**SIZES, **TOKENS, intermediate_size=24, head_dim=8, num_key_value_heads=1)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_fused_where_it_serves(make_model, make_adapters, caplog, architecture):
    model, _, _ = make_adapters(make_model(architecture))
    with caplog.at_level(logging.INFO, "gradfiltering"):
        assert choose_engine(model, ResponseNLL(), 1000).name == "fused"
    assert "by the fused engine" in caplog.text
    assert model.get_base_model().config._attn_implementation == "eager", "a trial left its traces"


@pytest.mark.parametrize(("build", "reason"), [(opt, "fc1 sees inputs of shape"), (gemma2, "softcap")])
def test_vmap_elsewhere_and_fused_by_name_is_refused(make_adapters, make_batch, caplog, build, reason):
    torch.manual_seed(0)
    model, adapters, _ = make_adapters(build().double().eval().requires_grad_(False))
    batch = make_batch([9, 6], [3, 2])
    fused_engine = FusedEngine(model, ResponseNLL(), 1000)
    fused_engine.to(torch.device("cpu"))
    with pytest.raises(UserError, match=reason):
        fused_engine.measure(adapters, batch, False)
    with caplog.at_level(logging.INFO, "gradfiltering"):
        engine = choose_engine(model, ResponseNLL(), 1000)
    assert engine.name == "vmap" and "by the vmap engine: " in caplog.text
    assert engine.measure(adapters, batch, False).grad_norm.isfinite().all()


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
