"""Models that route, lack SDPA or flatten their states, from a folder to gradients in each precision."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from gradfiltering.errors import UserError
from gradfiltering.gradients.auto import choose_engine
from gradfiltering.models.language_model import PretrainedModel
from gradfiltering.models.lora import LoraSettings
from gradfiltering.models.objectives import ResponseNLL
from tests.support.architectures import small_model
from tests.support.pipeline import tiny_gpt2

CPU = torch.device("cpu")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp64"])
@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss", "opt", "falcon", "bloom"])
def test_models_run_from_folder_to_gradients(model_type, precision, tmp_path, make_batch):
    folder = tiny_gpt2(tmp_path / model_type)  # for its tokenizer
    model = small_model(model_type).float()
    for parameter in model.parameters():
        parameter.data.mul_(0.1)
    model.save_pretrained(folder)
    source = PretrainedModel(str(folder), precision=precision)
    source.check()
    peft_model = LoraSettings(2, 4, "all-linear", 0.1).attach(source.load(CPU).model)
    engine = choose_engine(peft_model, ResponseNLL(), 1000)
    adapters = {name: p.detach()[None] for name, p in peft_model.named_parameters() if p.requires_grad}
    measured = engine.measure(adapters, make_batch([9, 6], [3, 2]), with_mean_gradient=True)
    assert engine.name == "fused" and (measured.grad_norm > 0).all() and measured.grad_norm.isfinite().all()


SMALL_ENCODER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SMALL_XLNET = {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 32}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("model_type", "shape", "is_causal"),
    [
        ("bert", SMALL_ENCODER, False),
        ("roberta", SMALL_ENCODER, False),
        ("electra", SMALL_ENCODER, False),
        ("xlnet", SMALL_XLNET, False),
        ("bert", {**SMALL_ENCODER, "is_decoder": True}, True),
        ("gpt_neox", SMALL_ENCODER, True),
    ],
)
def test_a_model_that_sees_later_tokens_is_refused(model_type, shape, is_causal, precision, tmp_path):
    folder = tiny_gpt2(tmp_path / "model")  # for its tokenizer
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, vocab_size=320, **shape)).save_pretrained(folder)
    source = PretrainedModel(str(folder), precision=precision)
    if is_causal:
        assert source.load(CPU).model.config.model_type == model_type
        return
    with pytest.raises(UserError, match=r"is an encoder \(.*the tokens that follow.*give a causal language model"):
        source.load(CPU)
