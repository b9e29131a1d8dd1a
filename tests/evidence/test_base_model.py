"""What the bare backbone shows equals a computation one row at a time, however the rows are batched."""

import json
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from datasets import Dataset
from tests.reference import bare as reference
from tests.support.pipeline import tiny_gpt2
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.data.examples import Encoder
from gradfiltering.data.file_formats import JSON_LINES
from gradfiltering.data.schemas import Instruction, Text
from gradfiltering.evidence.base_model import (
    CUT_OFF,
    NO_QUESTION,
    ONE_TOKEN,
    EmbeddingSettings,
    observe,
    row_text,
)
from gradfiltering.evidence.gradient_log import BatchSettings
from gradfiltering.models.language_model import LanguageModel
from gradfiltering.models.objectives import ResponseNLL
from gradfiltering.models.templates import TEMPLATES
from gradfiltering.requests import BaseModelLosses, Embeddings, ErrorNorms, GradientLog, ResponseLosses
from gradfiltering.runs.cache import Cache, Workspace

RTOL = 1e-4  # float32 forward passes in other batches
SCHEMA = Instruction("alpaca", "instruction", "input", "output")
PROXY = EmbeddingSettings(None, 64, centre=False)
ROWS = [
    {"instruction": f"Say {n}.", "input": "" if n % 2 else "now", "output": "It is 1 2 3."[: 4 + n]} for n in range(9)
]


@pytest.fixture(scope="module")
def base_model(tmp_path_factory) -> LanguageModel:
    folder = tiny_gpt2(tmp_path_factory.mktemp("gpt2"))
    return LanguageModel(*both(folder), "tiny", str(folder), 0.0, True)


def both(folder: Path):
    model = GPT2LMHeadModel.from_pretrained(folder).eval().requires_grad_(False)
    return model, GPT2TokenizerFast.from_pretrained(folder)


def one_cpu(**options) -> L.Trainer:
    return L.Trainer(accelerator="cpu", devices=1, **options)


def records_of(rows, schema=SCHEMA, template="alpaca") -> InstructionDataset:
    return InstructionDataset(Dataset.from_list(rows), None, schema, None, frozenset(), template, "test", JSON_LINES)


def look(needs, base_model, records, tmp_path, tokens=256, embedding=PROXY, max_tokens=128):
    encoded = Encoder(base_model.tokenizer, max_tokens, Cache(tmp_path / "cache")).encode_all(records)
    batch, need = BatchSettings(tokens, 0), frozenset(needs)
    workspace = Workspace(tmp_path / "run", Cache(tmp_path / "cache"), 0, one_cpu)
    seen = observe(need, base_model, ResponseNLL(), records, encoded, embedding, batch, workspace)
    return encoded.examples, seen


def test_only_what_is_asked_for_is_measured(base_model, tmp_path):
    _, seen = look({ErrorNorms()}, base_model, records_of(ROWS), tmp_path)
    assert set(seen) == {ErrorNorms()}
    _, seen = look({GradientLog()}, base_model, records_of(ROWS), tmp_path)
    assert set(seen) == {BaseModelLosses()}, "the diagnostics of the log compare with the bare losses"


@pytest.mark.parametrize("tokens", [1, 100, 100_000])
def test_el2n_equals_one_row_at_a_time(tokens, base_model, tmp_path):
    examples, seen = look({ErrorNorms()}, base_model, records_of(ROWS), tmp_path, tokens)
    expected = []
    for row in examples.table:
        spans = row["supervised"]
        places = [p for a, b in zip(spans[::2], spans[1::2], strict=True) for p in range(a, b)]
        expected.append(reference.error_norm(base_model.model, row["input_ids"], places))
    np.testing.assert_allclose(seen[ErrorNorms()], expected, rtol=RTOL)


@pytest.mark.parametrize("tokens", [1, 100, 100_000])
def test_embeddings_equal_one_row_at_a_time(tokens, base_model, tmp_path):
    examples, seen = look({Embeddings()}, base_model, records_of(ROWS), tmp_path, tokens)
    expected = [reference.mean_state(base_model.model, row["input_ids"]).numpy() for row in examples.table]
    np.testing.assert_allclose(seen[Embeddings()], expected, rtol=RTOL, atol=1e-5)
    assert seen[Embeddings()].dtype == np.float32
    _, centred = look({Embeddings()}, base_model, records_of(ROWS), tmp_path, tokens, replace(PROXY, centre=True))
    np.testing.assert_allclose(centred[Embeddings()].mean(0), 0, atol=1e-5)


def test_embeddings_of_a_sentence_encoder(base_model, tmp_path):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    encoder = BertModel(config).eval()
    encoder.save_pretrained(tmp_path / "encoder")
    tokenizer = GPT2TokenizerFast.from_pretrained(base_model.path, pad_token="<|endoftext|>")
    tokenizer.save_pretrained(tmp_path / "encoder")
    records, settings = records_of(ROWS), EmbeddingSettings(str(tmp_path / "encoder"), 32, centre=False)
    _, seen = look({Embeddings()}, base_model, records, tmp_path, 100, settings)
    for position, vector in enumerate(seen[Embeddings()]):
        ids = tokenizer(row_text(records, position, base_model.tokenizer), truncation=True, max_length=32)["input_ids"]
        with torch.no_grad():
            mean = encoder(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), rtol=1e-3, atol=1e-5)


def test_rows_that_have_no_two_losses_say_why(base_model, tmp_path):
    need = ResponseLosses("plain", 24)
    rows = [*ROWS[:2], {**ROWS[0], "output": "1"}, {**ROWS[0], "instruction": "Say " * 40}]
    examples, seen = look({need}, base_model, records_of(rows), tmp_path)
    assert len(examples) == 4 and seen[need].missing_reasons == {2: ONE_TOKEN, 3: CUT_OFF}
    assert np.isnan(seen[need].alone).tolist() == [False, False, True, True]
    _, seen = look({need}, base_model, records_of([{"text": "It is."}], Text("text")), tmp_path)
    assert seen[need].missing_reasons == {0: NO_QUESTION}


@pytest.mark.parametrize("count", [30, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("template", ["plain", "alpaca"])
def test_two_losses_equal_the_published_recipe_on_real_rows(template, count, shared_data, tmp_path):
    """Alpaca rows, the real GPT-2 tokenizer, a small random GPT-2; long rows are cut as published."""
    tokenizer = GPT2TokenizerFast.from_pretrained(shared_data / "tokenizers" / "gpt2")
    torch.manual_seed(0)
    shape = GPT2Config(vocab_size=50257, n_positions=256, n_embd=32, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(shape).eval().requires_grad_(False)
    base_model = LanguageModel(model, tokenizer, "random", "random", 0.0, True)
    rows = json.loads((shared_data / "alpaca" / "alpaca_data.json").read_text("utf-8"))
    longest = sorted(range(2000), key=lambda n: -len(rows[n]["output"]))[: count // 10]
    records = records_of([rows[n] for n in [*range(count - len(longest)), *longest]])
    need = ResponseLosses(template, 1024)
    by_batch = [look({need}, base_model, records, tmp_path, tokens, max_tokens=256)[1][need] for tokens in (300, 8192)]
    np.testing.assert_allclose(by_batch[0].given_prompt, by_batch[1].given_prompt, rtol=RTOL)
    np.testing.assert_allclose(by_batch[0].alone, by_batch[1].alone, rtol=RTOL)
    compared = cut = 0
    for row, record in enumerate(records.rows):
        if row in by_batch[0].missing_reasons:
            continue
        prompt = TEMPLATES[template](SCHEMA.turn(record), tokenizer)
        given, alone = reference.paired_losses(model, tokenizer, prompt, record["output"], 256)
        np.testing.assert_allclose(by_batch[0].given_prompt[row], given, rtol=RTOL, err_msg=f"row {row}")
        np.testing.assert_allclose(by_batch[0].alone[row], alone, rtol=RTOL, err_msg=f"row {row}")
        compared += 1
        cut += len(tokenizer.encode(prompt + record["output"])) > 256
    assert compared > 0.9 * count and cut >= count // 30
