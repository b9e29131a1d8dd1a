"""Adapters trained on a quantised base model (QLoRA), with bitsandbytes itself."""

import csv

import numpy as np
import pytest
import torch

from gradfiltering.data.batches import LengthBatches, make_batch_loader
from gradfiltering.data.encoder import Encoder
from gradfiltering.finetuning.fine_tune import attach_untrained_adapter, fine_tune
from gradfiltering.judging.generation import GenerationSettings, generate_responses
from gradfiltering.judging.prompts import Prompt
from gradfiltering.models.causal_model import SplitModel
from gradfiltering.models.lora import load_adapter
from gradfiltering.models.objectives import ResponseNLL
from gradfiltering.models.weights import count_matmul_weights, hash_model
from gradfiltering.runs.cache import Cache
from tests.support.model_losses import response_losses
from tests.support.small_targets import load_small_target, make_training, tuning_settings

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install bitsandbytes")

SHAPE = {"layers": 2, "heads": 4, "width": 64}
CASES = [("gpt2", "4bit"), ("llama", "4bit"), ("llama", "8bit")]
CPU = torch.device("cpu")


@pytest.fixture(params=CASES, ids="-".join)
def models(request, dataset, tmp_path):
    """The same small model quantised and not."""
    architecture, quantization = request.param
    return [
        load_small_target(dataset, tmp_path, bits, architecture=architecture, **SHAPE) for bits in (quantization, None)
    ]


@pytest.fixture
def rows(dataset, models, tmp_path):
    return Encoder(models[0].tokenizer, 96, Cache(tmp_path / "cache")).encode_all(dataset)


def heldout_loss(model, rows, pad_id):
    batches = make_batch_loader(LengthBatches(rows.heldout, 4096, pad_id), 0)
    return np.mean(list(response_losses(model, ResponseNLL(), batches, CPU).values()))


def dequantized(weight):
    return bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)


def test_training_lowers_the_loss_and_adapters_fit_both_base_models(models, rows, tmp_path):
    quantized, plain = models
    weights_before = hash_model(quantized.model)
    training = make_training(quantized, rows, tmp_path / "run", tmp_path / "cache", tuning_settings(epochs=4))
    fine_tune("candidate", rows.examples, training, tmp_path)
    assert hash_model(quantized.model) == weights_before, "training left other weights behind"
    with (tmp_path / "curve.csv").open(newline="") as file:
        curve = [float(point["heldout_loss"]) for point in csv.DictReader(file)]
    untrained_loss = heldout_loss(plain.model, rows, plain.pad_id)
    assert curve[0] == pytest.approx(untrained_loss, rel=0.01), "a quantised model is nearly the same"
    assert curve[-1] < curve[0] - 0.15
    for base_model, tolerance in ((quantized, 1e-4), (plain, 0.05)):
        adapted_model = load_adapter(base_model.model, tmp_path / "adapter")
        assert heldout_loss(adapted_model, rows, base_model.pad_id) == pytest.approx(curve[-1], rel=tolerance)
        adapted_model.unload()


def test_linear_layers_alone_are_quantised(models):
    quantized, plain = models
    parameters, plain_parameters = (dict(model.model.named_parameters()) for model in models)
    narrow_names = {name for name, weight in parameters.items() if weight.dtype in (torch.uint8, torch.int8)}
    matrices = {name for name, weight in plain_parameters.items() if weight.dim() == 2}
    others = {name for name in matrices if name.split(".")[-2] in ("embed_tokens", "lm_head", "wte", "wpe")}
    assert narrow_names == matrices - others and narrow_names
    assert count_matmul_weights(quantized.model) == count_matmul_weights(plain.model)


def test_cache_keys_differ_from_those_of_the_plain_model(models, rows, tmp_path):
    keys = [
        make_training(model, rows, tmp_path / "run", tmp_path / "cache").shared_key["base_model"] for model in models
    ]
    assert keys[0] != keys[1]


def test_adapters_get_the_gradient_of_the_dequantised_weights(models, rows):
    """QLoRA's own definition: products with the weights as they are dequantised."""
    quantized, plain = models
    if not getattr(quantized.model, "is_loaded_in_4bit", False):
        pytest.skip("8-bit products quantise the activations, too")
    (batch,) = LengthBatches(rows.examples, 10**6, quantized.pad_id)
    gradients, settings = [], tuning_settings()
    quantized_modules = dict(quantized.model.named_modules())
    for name, module in plain.model.named_modules():
        weight = getattr(quantized_modules[name], "weight", None)
        if hasattr(weight, "quant_state"):
            value = dequantized(weight)
            module.weight.data = value.T if type(module).__name__ == "Conv1D" else value
    for base_model in models:
        with attach_untrained_adapter(base_model, settings, 0) as model:
            ResponseNLL()(SplitModel(model), batch).sum().backward()
            gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-5)


def test_a_quantised_model_with_an_adapter_answers_prompts(models, rows, tmp_path):
    quantized, _ = models
    with attach_untrained_adapter(quantized, tuning_settings(), 0) as model:
        answers = generate_responses(
            model, quantized.tokenizer, [Prompt("set", "1", "question", "", None)], ["question"],
            GenerationSettings(5, 2), "answers",
        )  # fmt: skip
    assert 1 <= answers[0].response_tokens <= 5
