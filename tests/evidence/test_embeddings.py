"""Embeddings equal a computation one row at a time, however the rows are batched."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, GPT2TokenizerFast

from gradfiltering.evidence.context import EmbeddingSettings
from gradfiltering.evidence.embeddings import row_text
from gradfiltering.requests import Embeddings
from tests.reference import base_model as reference

RTOL = 1e-4  # float32 forward passes in other batches


@pytest.mark.parametrize("tokens", [1, 100, 100_000])
def test_proxy_embeddings_equal_one_row_at_a_time(tokens, base_model, rows, measure, make_context):
    settings = EmbeddingSettings(None, 64, centre=False)
    embeddings = measure(Embeddings(), base_model, rows, tokens=tokens, embeddings=settings)
    table = make_context(base_model, rows).examples.table
    expected = [reference.mean_state(base_model.model, row["input_ids"]).numpy() for row in table]
    np.testing.assert_allclose(embeddings, expected, rtol=RTOL, atol=1e-5)
    assert embeddings.dtype == np.float32


def test_centred_embeddings_have_mean_zero(base_model, rows, measure):
    embeddings = measure(Embeddings(), base_model, rows, embeddings=EmbeddingSettings(None, 64, centre=True))
    np.testing.assert_allclose(embeddings.mean(0), 0, atol=1e-5)


def test_sentence_encoder_embeddings_equal_one_row_at_a_time(base_model, rows, measure, make_context, tmp_path):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    encoder = BertModel(config).eval()
    encoder.save_pretrained(tmp_path / "encoder")
    tokenizer = GPT2TokenizerFast.from_pretrained(base_model.path, pad_token="<|endoftext|>")
    tokenizer.save_pretrained(tmp_path / "encoder")
    settings = EmbeddingSettings(str(tmp_path / "encoder"), 32, centre=False)
    dataset = make_context(base_model, rows).dataset
    for position, vector in enumerate(measure(Embeddings(), base_model, rows, tokens=100, embeddings=settings)):
        text = row_text(dataset, position, base_model.tokenizer)
        ids = tokenizer(text, truncation=True, max_length=32)["input_ids"]
        with torch.no_grad():
            mean = encoder(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), rtol=1e-3, atol=1e-5)
