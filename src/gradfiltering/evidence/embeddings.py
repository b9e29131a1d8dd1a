"""Embeddings of rows: mean hidden states of the proxy, or vectors of a sentence encoder."""

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.distributed.row_measurements import Column, RowMeasurements
from gradfiltering.evidence.base_model_passes import forward_batches, mean_over_tokens, prepare_base_model
from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.evidence.measurers import Measurer
from gradfiltering.models.causal_model import split_model
from gradfiltering.models.language_model import from_pretrained
from gradfiltering.models.model_folder import check_loaded_weights
from gradfiltering.requests import Embeddings
from gradfiltering.runs.plain_text import replace_lone_surrogates

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EmbeddingMeasurer(Measurer[Embeddings]):
    """Measures a vector for each row."""

    request_type = Embeddings

    @torch.no_grad()
    def measure(self, request: Embeddings, context: MeasurementContext) -> np.ndarray:
        """Measure [N, D] float32, centred where the settings say so."""
        if context.embeddings.encoder is None:
            embeddings = _embed_by_proxy(context)
        else:
            embeddings = _embed_by_sentence_encoder(context, context.embeddings.encoder)
        return embeddings - embeddings.mean(0) if context.embeddings.centre else embeddings


def _embed_by_proxy(context: MeasurementContext) -> np.ndarray:
    """Average the last hidden states over each row's tokens."""
    examples = context.examples.chosen_sequences()
    causal_model = split_model(prepare_base_model(context))

    def last_hidden_states(input_ids: torch.Tensor) -> torch.Tensor:
        hidden_states: torch.Tensor  # [B, T, D]
        if causal_model.body is not None:
            hidden_states = causal_model.body(input_ids=input_ids, use_cache=False).last_hidden_state
        else:
            output = causal_model.model(input_ids=input_ids, output_hidden_states=True, use_cache=False)
            hidden_states = output.hidden_states[-1]
        return hidden_states

    single_token = torch.zeros((1, 1), dtype=torch.int64, device=context.device)
    state_width = last_hidden_states(single_token).shape[-1]
    row_recorder = RowMeasurements(examples.example_ids, {"embedding": Column((state_width,), np.float32)})
    for batch in forward_batches(context, examples):
        row_indices = np.searchsorted(examples.example_ids, batch.example_id.numpy())
        lengths = torch.from_numpy(examples.lengths[row_indices]).to(context.device)
        token_mask = torch.arange(batch.input_ids.shape[1], device=context.device) < lengths[:, None]
        embeddings = mean_over_tokens(last_hidden_states(batch.input_ids), token_mask)
        row_recorder.record(batch.example_id.numpy(), embedding=embeddings.cpu().numpy())
    return row_recorder.gather()["embedding"].squeeze(0)  # of the one model


def _embed_by_sentence_encoder(context: MeasurementContext, encoder_name: str) -> np.ndarray:
    """Average an encoder's states over the tokens of each row's whole text, scaled to length 1."""
    from transformers import AutoModel, AutoTokenizer

    example_ids = context.examples.example_ids
    tokenizer = from_pretrained(AutoTokenizer, encoder_name)
    encoder, loading_info = from_pretrained(AutoModel, encoder_name, output_loading_info=True)
    # Means are taken over the last states, which no pooler and no head has a part in.
    missing_keys = {key for key in loading_info["missing_keys"] if not key.startswith("pooler.")}
    used_weights = {**loading_info, "missing_keys": missing_keys, "unexpected_keys": set()}
    check_loaded_weights(used_weights, encoder_name, type(encoder).__name__)
    encoder = encoder.to(context.device).eval()
    max_tokens = min(context.embeddings.max_tokens, tokenizer.model_max_length)
    texts = [row_text(context.dataset, example_id, context.base_model.tokenizer) for example_id in example_ids.tolist()]
    token_ids = tokenizer(texts, truncation=True, max_length=max_tokens)["input_ids"]
    length_order = np.argsort([len(ids) for ids in token_ids], kind="stable")
    batch_size = max(1, context.batches.forward_tokens(context.device) // max(map(len, token_ids)))
    row_batches = [length_order[start : start + batch_size] for start in range(0, len(length_order), batch_size)]

    def embed_rows(row_indices: np.ndarray) -> np.ndarray:
        batch_ids = {"input_ids": [token_ids[row] for row in row_indices]}
        padded_batch = tokenizer.pad(batch_ids, return_tensors="pt").to(context.device)
        hidden_states = encoder(**padded_batch).last_hidden_state
        vectors = mean_over_tokens(hidden_states, padded_batch["attention_mask"])
        unit_vectors: np.ndarray = F.normalize(vectors, dim=1).cpu().numpy()
        return unit_vectors

    vector_width = embed_rows(length_order[:1]).shape[1]
    row_recorder = RowMeasurements(example_ids, {"embedding": Column((vector_width,), np.float32)})
    for row_indices in row_recorder.share(row_batches):
        row_recorder.record(example_ids[row_indices], embedding=embed_rows(row_indices))
    return row_recorder.gather()["embedding"].squeeze(0)  # of the one model


def row_text(dataset: InstructionDataset, example_id: int, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Join a row's prompt and response to one text, without the words of a template."""
    segments = dataset.schema.segments(dataset.rows[example_id], "plain", tokenizer)
    return replace_lone_surrogates("".join(segment.text for segment in segments))
