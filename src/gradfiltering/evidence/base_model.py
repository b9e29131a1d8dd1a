"""What the backbone without adapters says about the rows, where a scorer or selector asks for it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from gradfiltering.data.batches import IGNORED, Batch, LengthBatches, make_batch_loader
from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.data.encoding import clean
from gradfiltering.data.examples import Examples, Rows
from gradfiltering.distributed.process_group import gather, share
from gradfiltering.evidence.gradient_log import BARE_TOKENS, BatchSettings, cached_losses, measure_bare
from gradfiltering.models.causal_model import CHUNK_BYTES, SplitModel, split_model
from gradfiltering.models.language_model import LanguageModel, from_pretrained
from gradfiltering.models.objectives import Objective, ResponseNLL
from gradfiltering.models.templates import template_named
from gradfiltering.models.weights import hash_weights
from gradfiltering.requests import (
    BaseModelLosses,
    Embeddings,
    ErrorNorms,
    Request,
    ResponseLosses,
    ResponseLossPair,
    RowTokens,
)
from gradfiltering.runs.cache import Cache, Workspace

NO_QUESTION = "no question that the response could depend on"
ONE_TOKEN = "a response of one token has no loss by itself"
CUT_OFF = "the prompt leaves no room for the response"


@dataclass(frozen=True)
class EmbeddingSettings:
    """Where the vectors come from that say which rows are alike.

    Attributes:
        encoder: None for the proxy's last hidden states, or hub id or folder of a sentence encoder.
        max_tokens: longest text for a sentence encoder; the proxy sees the rows as it trains on them.
        centre: take the mean over the rows off. A language model's states share one large direction, beside which rows
            hardly differ.
    """

    encoder: str | None
    max_tokens: int
    centre: bool


def observe(
    requests: frozenset[Request[Any]],
    base_model: LanguageModel,
    objective: Objective,
    records: InstructionDataset,
    rows: Rows,
    embedding: EmbeddingSettings,
    batch: BatchSettings,
    workspace: Workspace,
) -> dict[Request[Any], Any]:
    """Measure the base model as far as it is requested.

    Args:
        requests: of scorer and selector. Requests of the ensemble bring the losses, which its diagnostics compare with.
        base_model: model and tokenizer.
        objective: of the losses.
        records: the rows as text.
        rows: the same, encoded.
        embedding: where embeddings come from.
        batch: how work is cut up.
        workspace: store and trainer.
    """
    device = workspace.trainer().strategy.root_device
    batch_tokens = BARE_TOKENS if isinstance(batch.tokens, str) else batch.tokens
    passes = _Passes(base_model, device, batch_tokens, batch.workers)
    results: dict[Request[Any], Any] = {}
    if RowTokens() in requests:
        results[RowTokens()] = rows.examples.table["input_ids"]
    if Embeddings() in requests:
        of_proxy = embedding.encoder is None
        embeddings = passes.states(rows.examples) if of_proxy else _encoded(embedding, records, rows.examples, passes)
        results[Embeddings()] = embeddings - embeddings.mean(0) if embedding.centre else embeddings
    if BaseModelLosses() in requests or any(request.reads_ensemble for request in requests):
        results[BaseModelLosses()] = measure_bare(base_model, objective, rows, batch, workspace)
    if ErrorNorms() in requests:
        results[ErrorNorms()] = passes.el2n(rows.examples)
    for request in sorted(requests, key=repr):  # in the same order in every process
        if isinstance(request, ResponseLosses):
            results[request] = passes.paired(request, records, rows.examples, workspace.cache)
    return results


@dataclass(frozen=True)
class _Passes:
    """Forward passes of the bare backbone over rows in batches of like length, shared out over the processes."""

    base_model: LanguageModel
    device: torch.device
    tokens: int
    workers: int

    def batches(self, examples: Examples) -> Iterable[Batch]:
        return make_batch_loader(
            LengthBatches(examples, self.tokens, self.base_model.pad_id, share=share()), self.workers
        )

    @torch.inference_mode()
    def el2n(self, examples: Examples) -> np.ndarray:
        """[N] mean error norm of the response tokens."""
        split = split_model(self.base_model.model.to(self.device).eval())
        found: dict[int, float] = {}
        for batch in self.batches(examples):
            there = batch.to(self.device)
            response = there.labels[:, 1:] != IGNORED
            sums = torch.zeros(len(response), dtype=torch.float64, device=self.device)
            for row, target, logits in response_logits(split, there):
                sums.index_add_(0, row, error_norms(logits, target).double())
            found.update(zip(batch.example_id.tolist(), (sums / response.sum(1)).tolist(), strict=True))
        return _in_order(found, examples)

    @torch.inference_mode()
    def states(self, examples: Examples) -> np.ndarray:
        """[N, D] float32 mean over a row's tokens of the last hidden state."""
        model = self.base_model.model.to(self.device).eval()
        split = split_model(model)
        lengths = dict(zip(examples.example_ids.tolist(), examples.lengths.tolist(), strict=True))
        found: dict[int, np.ndarray] = {}
        for batch in self.batches(examples):
            ids = batch.input_ids.to(self.device)
            if split.body is None:
                hidden = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[-1]
            else:
                hidden = split.body(input_ids=ids, use_cache=False).last_hidden_state  # [B, T, D]
            length = torch.tensor([lengths[one] for one in batch.example_id.tolist()], device=self.device)
            real = torch.arange(ids.shape[1], device=self.device) < length[:, None]
            found.update(zip(batch.example_id.tolist(), mean_over(hidden, real).cpu().numpy(), strict=True))
        return _in_order(found, examples).astype(np.float32)

    def paired(
        self, need: ResponseLosses, records: InstructionDataset, examples: Examples, cache: Cache
    ) -> ResponseLossPair:
        """Both losses of each response in one pass over twice as many sequences."""
        pairs, reasons = answer_pairs(need, records, examples, self.base_model)
        count = len(examples)
        losses = np.full((count, 2), np.nan)
        if len(pairs):
            sequences = pairs.example_ids
            hashed = hash_weights(self.base_model.model)
            found = cached_losses(self.base_model, hashed, ResponseNLL(), pairs, self.batches, self.device, cache)
            losses[sequences // 2, sequences % 2] = found
        return ResponseLossPair(losses[:, 0], losses[:, 1], reasons)


def response_logits(split: SplitModel, batch: Batch) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Logits at the positions that predict a response token, a slice of them at a time.

    Yields:
        [K] row of the batch, [K] target, [K, V] logits in at least float32.
    """
    row, position = (batch.labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    target = batch.labels[row, position + 1]
    if split.head_weight is None:
        kept = split.model(input_ids=batch.input_ids, use_cache=False).logits[row, position]
        width = kept.shape[1]
    else:
        kept = split.body(input_ids=batch.input_ids, use_cache=False).last_hidden_state[row, position]
        width = len(split.head_weight)
    step = max(1, CHUNK_BYTES // (4 * width))
    for start in range(0, len(row), step):
        some = slice(start, start + step)
        logits = kept[some] if split.head_weight is None else F.linear(kept[some], split.head_weight, split.head_bias)
        yield row[some], target[some], logits.to(torch.promote_types(logits.dtype, torch.float32))


def error_norms(logits: Tensor, target: Tensor) -> Tensor:
    """‖softmax(logits) − onehot(target)‖₂; [K, V], [K] -> [K]."""
    error = torch.softmax(logits, dim=-1)
    error.scatter_add_(1, target[:, None], error.new_full((len(target), 1), -1.0))
    return error.norm(dim=-1)


def mean_over(hidden: Tensor, real: Tensor) -> Tensor:
    """Mean over the tokens that are no padding; [B, T, D], [B, T] -> [B, D] float32."""
    weights = real.float()
    return (hidden.float() * weights[:, :, None]).sum(1) / weights.sum(1, keepdim=True)


def answer_pairs(
    need: ResponseLosses, records: InstructionDataset, examples: Examples, base_model: LanguageModel
) -> tuple[Examples, dict[int, str]]:
    """The sequences whose losses make IFD, as the published code cuts and tokenises them (Li et al., 2024).

    Prompt and response are tokenised as one text, the response begins after as many tokens as the prompt has by
    itself; the response alone is cut where it ends within the whole, plus one token.

    Args:
        need: template and longest input.
        records: the rows as text.
        examples: the rows that can be scored.
        backbone: tokenizer and longest input of the model.

    Returns:
        Sequences 2·n (prompt and response) and 2·n + 1 (response alone) of row n of the examples, supervised on the
        response; the reason for each row without them.
    """
    write, tokenizer = template_named(need.template), base_model.tokenizer
    limit = min(need.max_tokens, base_model.context)
    columns: dict[str, list] = {"example_id": [], "input_ids": [], "supervised": []}
    reasons: dict[int, str] = {}
    for row, example_id in enumerate(examples.example_ids.tolist()):
        turn = records.schema.turn(records.rows[example_id])
        if turn is None:
            reasons[row] = NO_QUESTION
            continue
        prompt, answer = clean(write(turn, tokenizer)), clean(turn.output)
        whole, opening, alone = tokenizer([prompt + answer, prompt, answer])["input_ids"]
        start, whole = len(opening), whole[:limit]
        alone = alone[: limit - start + 1] if start < limit else []
        if max(start, 1) >= len(whole):
            reasons[row] = CUT_OFF
        elif len(alone) < 2:
            reasons[row] = ONE_TOKEN
        else:
            columns["example_id"] += [2 * row, 2 * row + 1]
            columns["input_ids"] += [whole, alone]
            columns["supervised"] += [[max(start, 1), len(whole)], [1, len(alone)]]
    lengths = np.asarray([len(ids) for ids in columns["input_ids"]], dtype=np.int32)
    spans = np.asarray(columns["supervised"], dtype=np.int32).reshape(-1, 2)
    ids = np.asarray(columns["example_id"], dtype=np.int64)
    return Examples(Dataset.from_dict(columns), ids, lengths, spans[:, 1] - spans[:, 0], 0, []), reasons


@torch.inference_mode()
def _encoded(
    settings: EmbeddingSettings, records: InstructionDataset, examples: Examples, passes: _Passes
) -> np.ndarray:
    """[N, D] float32: a sentence encoder's mean over the tokens of each row's whole text, of length 1."""
    name = str(settings.encoder)
    tokenizer = from_pretrained(AutoTokenizer, name)
    model = from_pretrained(AutoModel, name).to(passes.device).eval()
    limit = min(settings.max_tokens, tokenizer.model_max_length)
    texts = [row_text(records, example_id, passes.base_model.tokenizer) for example_id in examples.example_ids.tolist()]
    tokens = tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
    order = np.argsort([len(ids) for ids in tokens], kind="stable")
    width = max(1, passes.tokens // max(map(len, tokens)))
    found: dict[int, np.ndarray] = {}
    for some in share()([order[start : start + width] for start in range(0, len(order), width)]):
        padded = tokenizer.pad({"input_ids": [tokens[place] for place in some]}, return_tensors="pt").to(passes.device)
        vectors = mean_over(model(**padded).last_hidden_state, padded["attention_mask"])
        unit = F.normalize(vectors, dim=1).cpu().numpy()
        found.update(zip(examples.example_ids[some].tolist(), unit, strict=True))
    return _in_order(found, examples).astype(np.float32)


def row_text(records: InstructionDataset, example_id: int, tokenizer: Any) -> str:
    """A row's prompt and response as one text, without the words of a template."""
    segments = records.schema.segments(records.rows[example_id], "plain", tokenizer)
    return clean("".join(segment.text for segment in segments))


def _in_order(found: dict[int, Any], examples: Examples) -> np.ndarray:
    """What all processes found, in the order of the examples."""
    every = {example_id: value for some in gather(found) for example_id, value in some.items()}
    return np.asarray([every[example_id] for example_id in examples.example_ids.tolist()])
