"""From records to tokenised examples, with the reason for every row that cannot be scored."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value
from datasets import Sequence as SequenceFeature

from gradfiltering.data.prompts import template_named
from gradfiltering.data.records import Columns, Records, content_hash
from gradfiltering.errors import UserError
from gradfiltering.store import Store, writing

EMPTY_RESPONSE = "empty response"
NO_RESPONSE_LEFT = "no response token left: the prompt alone fills max_tokens"
SET_ASIDE = "held out for evaluation (data.heldout.share)"

ENCODED = Features(
    {
        "example_id": Value("int64"),
        "input_ids": SequenceFeature(Value("int32")),
        "prompt_tokens": Value("int32"),
        "response_tokens": Value("int32"),
        "truncated": Value("bool"),
        "reason": Value("string"),
    }
)


@dataclass(frozen=True)
class Examples:
    """Tokenised examples that can be scored.

    Attributes:
        table: one row an example: `example_id`, `input_ids` (prompt, response, end of sequence), `prompt_tokens`,
            `response_tokens` (end of sequence included), `truncated`.
        example_ids: [N] int64, ascending.
        lengths: [N] int32, tokens of prompt and response.
        response_tokens: [N] int32.
        unscored: example id and reason of every row left out.
    """

    table: Dataset
    example_ids: np.ndarray
    lengths: np.ndarray
    response_tokens: np.ndarray
    truncated: int
    unscored: list[tuple[int, str]]

    def __len__(self) -> int:
        return len(self.example_ids)

    @property
    def tokens(self) -> int:
        """Tokens of one pass over all examples, padding not counted."""
        return int(self.lengths.sum())

    def summary(self, rows: int) -> dict[str, int]:
        """The part of `summary.json` about the data, which has `rows` rows in all."""
        return {"examples": rows, "unscored": len(self.unscored), "truncated": self.truncated, "tokens": self.tokens}

    def select(self, example_ids: Sequence[int]) -> "Examples":
        """The examples with these ids, in ascending order of id."""
        positions = np.flatnonzero(np.isin(self.example_ids, np.asarray(example_ids)))
        return _examples(self.table.select(positions), unscored=[])


@dataclass(frozen=True)
class Rows:
    """The examples to train on and score, and the held-out ones (None where nothing is held out)."""

    examples: Examples
    heldout: Examples | None


def tokenizer_hash(tokenizer: Any) -> str:
    """Digest of what decides a tokenizer's output: its rules, vocabulary and special tokens."""
    if tokenizer.is_fast:
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        rules = json.dumps({**backend, "padding": None, "truncation": None})  # left over from the last call
    else:
        rules = repr(sorted(tokenizer.get_vocab().items()))
    special = repr(sorted(tokenizer.special_tokens_map.items(), key=str)) + repr(tokenizer.chat_template)
    return hashlib.sha256((rules + special).encode()).hexdigest()[:32]


class Encoder:
    """Tokenises rows for one model: prompt by template, then the response closed by an end-of-sequence token.

    Prompt and response are tokenised apart, so the boundary between them never depends on how they would merge.
    A row longer than `max_tokens` loses the end of its response (and with it the end-of-sequence token).

    Args:
        tokenizer: a `transformers` tokenizer with an end-of-sequence token.
        max_tokens: longest example in tokens.
        store: where the tokenised table is cached.
    """

    def __init__(self, tokenizer: Any, max_tokens: int, store: Store):
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-sequence token; set one in its tokenizer_config.json")
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.store = store

    def encode_all(self, records: Records) -> Rows:
        """Tokenises candidate and held-out rows."""
        return Rows(self.encode(records), self.encode_heldout(records))

    def encode(self, records: Records) -> Examples:
        """Tokenises the candidate rows.

        Raises:
            UserError: not one row can be scored; the message counts the reasons.
        """
        encoded = self._map(records.rows, records)
        reasons = encoded["reason"][:]
        for position in records.set_aside:
            reasons[position] = reasons[position] or SET_ASIDE
        unscored = [(position, reason) for position, reason in enumerate(reasons) if reason]
        if len(unscored) == len(reasons):
            raise UserError(f"none of the {len(reasons)} rows of {records.origin} can be scored: {_counts(unscored)}")
        keep = [position for position, reason in enumerate(reasons) if not reason]
        return _examples(encoded.select(keep).remove_columns("reason"), unscored)

    def encode_heldout(self, records: Records) -> Examples | None:
        """Tokenises the held-out rows, leaving out those without a response; None where none is held out."""
        if records.heldout is None:
            return None
        encoded = self._map(records.heldout, records)
        keep = [position for position, reason in enumerate(encoded["reason"][:]) if not reason]
        return _examples(encoded.select(keep).remove_columns("reason"), unscored=[]) if keep else None

    def _map(self, rows: Dataset, records: Records) -> Dataset:
        columns = records.columns
        named = [columns.instruction, columns.input, columns.output]
        rows = rows.select_columns([name for name in named if name in rows.column_names])
        key = {
            "rows": content_hash(rows),
            "tokenizer": tokenizer_hash(self.tokenizer),
            "template": records.template,
            "columns": named,
            "max_tokens": self.max_tokens,
        }
        cache = self.store.scratch("tokens", key, ".arrow")
        with writing(cache):
            return rows.map(
                encode_rows,
                with_indices=True,
                batched=True,
                remove_columns=rows.column_names,
                features=ENCODED,
                cache_file_name=str(cache),
                new_fingerprint=cache.stem,
                fn_kwargs={
                    "tokenizer": self.tokenizer,
                    "template": records.template,
                    "columns": columns,
                    "max_tokens": self.max_tokens,
                },
                desc="tokenising",
            )


def encode_rows(
    rows: dict[str, list], indices: list[int], tokenizer: Any, template: str, columns: Columns, max_tokens: int
) -> dict[str, list]:
    """Tokenises a batch of rows; the columns of `ENCODED`, with `reason` empty for a row that can be scored."""
    render = template_named(template)
    turns = [columns.turn(dict(zip(rows, values, strict=True))) for values in zip(*rows.values(), strict=True)]
    prompts = tokenizer([render(turn, tokenizer) for turn in turns])["input_ids"]
    responses = tokenizer([turn.output for turn in turns], add_special_tokens=False)["input_ids"]
    encoded: dict[str, list] = {name: [] for name in ENCODED}
    for index, turn, prompt, response in zip(indices, turns, prompts, responses, strict=True):
        whole = prompt + response + [tokenizer.eos_token_id]
        kept = whole[:max_tokens]
        reason = ""
        if not turn.output.strip():
            reason = EMPTY_RESPONSE
        elif len(kept) <= len(prompt):
            reason = NO_RESPONSE_LEFT
        encoded["example_id"].append(index)
        encoded["input_ids"].append(kept)
        encoded["prompt_tokens"].append(min(len(prompt), len(kept)))
        encoded["response_tokens"].append(max(0, len(kept) - len(prompt)))
        encoded["truncated"].append(len(whole) > max_tokens)
        encoded["reason"].append(reason)
    return encoded


def _examples(table: Dataset, unscored: list[tuple[int, str]]) -> Examples:
    columns = table.with_format("numpy")
    response_tokens = np.asarray(columns["response_tokens"][:], dtype=np.int32)
    return Examples(
        table=table,
        example_ids=np.asarray(columns["example_id"][:], dtype=np.int64),
        lengths=np.asarray(columns["prompt_tokens"][:], dtype=np.int32) + response_tokens,
        response_tokens=response_tokens,
        truncated=int(np.sum(columns["truncated"][:])),
        unscored=unscored,
    )


def _counts(unscored: list[tuple[int, str]]) -> str:
    reasons = [reason for _, reason in unscored]
    return "; ".join(f"{reasons.count(reason)} × {reason}" for reason in sorted(set(reasons)))
