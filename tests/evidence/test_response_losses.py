"""Both losses of a response equal the published recipe, and rows without them say why."""

import json

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

from gradfiltering.data.schemas import Text
from gradfiltering.data.templates import TEMPLATES
from gradfiltering.errors import UserError
from gradfiltering.evidence.measurers import check_requests
from gradfiltering.evidence.response_losses import CUT_OFF, NO_QUESTION, ONE_TOKEN
from gradfiltering.models.language_model import LanguageModel
from gradfiltering.requests import ResponseLosses
from tests.evidence.conftest import SCHEMA
from tests.reference import base_model as reference
from tests.support.small_ensembles import small_ensemble

RTOL = 1e-4  # float32 forward passes in other batches


def test_rows_without_two_losses_say_why(base_model, rows, measure):
    request = ResponseLosses("plain", 24)
    odd_rows = [*rows[:2], {**rows[0], "output": "1"}, {**rows[0], "instruction": "Say " * 40}]
    losses = measure(request, base_model, odd_rows, max_tokens=512)
    assert losses.missing_reasons == {2: ONE_TOKEN, 3: CUT_OFF}
    assert np.isnan(losses.alone).tolist() == [False, False, True, True]
    losses = measure(request, base_model, [{"text": "It is."}], schema=Text("text"))
    assert losses.missing_reasons == {0: NO_QUESTION}


def test_an_unknown_template_is_refused_before_loading():
    with pytest.raises(UserError, match="nonsense"):
        check_requests({ResponseLosses("nonsense", 24)}, small_ensemble())


@pytest.mark.parametrize("count", [30, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("template", ["plain", "alpaca"])
def test_losses_equal_the_published_recipe_on_real_rows(template, count, shared_data, measure):
    """Alpaca rows, the real GPT-2 tokenizer, a small random GPT-2; long rows are cut as published."""
    tokenizer = GPT2TokenizerFast.from_pretrained(shared_data / "tokenizers" / "gpt2")
    torch.manual_seed(0)
    shape = GPT2Config(vocab_size=50257, n_positions=256, n_embd=32, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(shape).eval().requires_grad_(False)
    base_model = LanguageModel(model, tokenizer, "random", "random", 0.0, True)
    alpaca_rows = json.loads((shared_data / "alpaca" / "alpaca_data.json").read_text("utf-8"))
    longest = sorted(range(2000), key=lambda n: -len(alpaca_rows[n]["output"]))[: count // 10]
    rows = [alpaca_rows[n] for n in [*range(count - len(longest)), *longest]]
    request = ResponseLosses(template, 1024)
    small_batches, large_batches = (
        measure(request, base_model, rows, tokens=tokens, max_tokens=256) for tokens in (300, 8192)
    )
    np.testing.assert_allclose(small_batches.given_prompt, large_batches.given_prompt, rtol=RTOL)
    np.testing.assert_allclose(small_batches.alone, large_batches.alone, rtol=RTOL)
    compared = cut = 0
    for index, row in enumerate(rows):
        if index in small_batches.missing_reasons:
            continue
        prompt = TEMPLATES[template](SCHEMA.turn(row), tokenizer)
        given, alone = reference.paired_losses(model, tokenizer, prompt, row["output"], 256)
        np.testing.assert_allclose(small_batches.given_prompt[index], given, rtol=RTOL, err_msg=f"row {index}")
        np.testing.assert_allclose(small_batches.alone[index], alone, rtol=RTOL, err_msg=f"row {index}")
        compared += 1
        cut += len(tokenizer.encode(prompt + row["output"])) > 256
    assert compared > 0.9 * count and cut >= count // 30
