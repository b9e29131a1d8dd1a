"""From records to tokenised examples, with the reason for every row that cannot be scored."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value
from datasets import Sequence as SequenceFeature
from rich.console import Console
from rich.text import Text

from gradfiltering.data.dataset import InstructionDataset, hash_content
from gradfiltering.data.encoding import NO_RESPONSE, NO_RESPONSE_LEFT, fit, pieces_of_rows, reason_of
from gradfiltering.data.json_rows import RECORD_COLUMN, JsonRows, rows_from_columns
from gradfiltering.data.schemas import Schema
from gradfiltering.errors import UserError
from gradfiltering.models.templates import template_named
from gradfiltering.runs.cache import Cache
from gradfiltering.runs.files import hash_key

ENCODED_FILE = "tokens.arrow"
ENCODING_VERSION = 2  # raise it when the same rows would be encoded otherwise
SHOWN_CHARACTERS = 600  # of each stretch of the example on the screen
# Options of a tokenizer that say where it lies, how it pads, or what stands in the hash anyway.
WITHOUT_EFFECT = re.compile(
    r"name_or_path|is_local|local_files_only|model_max_length|(padding|truncation)_side|chat_template|"
    r".*_(file|token|tokens|tokens_decoder)"
)
SET_ASIDE = "held out for evaluation (data.heldout.share)"

ENCODED = Features(
    {
        "example_id": Value("int64"),
        "input_ids": SequenceFeature(Value("int32")),
        "supervised": SequenceFeature(Value("int32")),
        "tokens": Value("int32"),
        "response_tokens": Value("int32"),
        "truncated": Value("bool"),
        "reason": Value("string"),
    }
)


@dataclass(frozen=True)
class Examples:
    """Tokenised examples that can be scored.

    Attributes:
        table: one row an example: `example_id`, `input_ids` (each response closed by its end token), `supervised`
            (the spans of `input_ids` to learn, as start, stop, start, stop, …), `tokens`, `response_tokens` (those
            in the spans), `truncated`.
        example_ids: [N] int64, ascending.
        lengths: [N] int32, all tokens.
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

    def summary(self, rows: int, left_out: Sequence[tuple[int, str]] = ()) -> dict[str, Any]:
        """The part of `summary.json` about the data.

        Args:
            rows: in all.
            left_out: id and reason of examples that a scorer gave no score.
        """
        unscored = [*self.unscored, *left_out]
        return {
            "examples": rows,
            "unscored": len(unscored),
            "unscored_reasons": dict(Counter(reason for _, reason in unscored)),
            "truncated": self.truncated,
            "tokens": self.tokens,
        }

    def select(self, example_ids: Sequence[int]) -> "Examples":
        """The examples with these ids, in ascending order of id."""
        positions = np.flatnonzero(np.isin(self.example_ids, np.asarray(example_ids)))
        return _examples(self.table.select(positions), unscored=[])


@dataclass(frozen=True)
class Rows:
    """The examples to train on and score, and the held-out ones (None where nothing is held out)."""

    examples: Examples
    heldout: Examples | None


def hash_examples(examples: Examples) -> str:
    """Digest of ids, tokens and the spans to learn."""
    digest = hashlib.sha256(np.ascontiguousarray(examples.example_ids).tobytes())
    columns = examples.table.select_columns(["input_ids", "supervised"]).with_format("arrow")
    for batch in columns.iter(10_000):
        for column_name in ("input_ids", "supervised"):
            column = batch[column_name].combine_chunks()
            digest.update(column.value_lengths().to_numpy(zero_copy_only=False).tobytes())
            digest.update(column.flatten().to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()[:32]


def hash_tokenizer(tokenizer: Any) -> str:
    """Digest of what decides a tokenizer's output: its rules, vocabulary and special tokens."""
    if tokenizer.is_fast:
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        rules = json.dumps({**backend, "padding": None, "truncation": None})  # left over from the last call
    else:
        rules = _slow_rules(tokenizer)
    special = repr(sorted(tokenizer.special_tokens_map.items(), key=str)) + repr(tokenizer.chat_template)
    return hashlib.sha256((rules + special).encode()).hexdigest()[:32]


def _slow_rules(tokenizer: Any) -> str:
    """What decides the ids of a tokenizer written in Python: its class, options, vocabulary, added tokens and files.

    The files hold what the vocabulary does not: merges, or the pieces' scores in a sentencepiece model.
    """
    with TemporaryDirectory() as folder:
        tokenizer.save_vocabulary(folder)
        files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    named = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    options = {name: value for name, value in tokenizer.init_kwargs.items() if not WITHOUT_EFFECT.fullmatch(name)}
    rules = (tokenizer.get_vocab(), tokenizer.added_tokens_decoder, options, named)
    return type(tokenizer).__name__ + repr([sorted(entries.items()) for entries in rules])


class Encoder:
    """Tokenises rows for one model: the prompt by template, every response closed by the token that ends it there.

    A row longer than `max_tokens` is cut as `encoding.fit` says.

    Args:
        tokenizer: a `transformers` tokenizer with an end-of-sequence token.
        max_tokens: longest example in tokens.
        store: where the tokenised table is cached.
    """

    def __init__(self, tokenizer: Any, max_tokens: int, cache: Cache):
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-sequence token; set one in its tokenizer_config.json")
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.cache = cache

    def encode_all(self, records: InstructionDataset) -> Rows:
        """Tokenises candidate and held-out rows."""
        return Rows(self.encode(records), self.encode_heldout(records))

    def show(self, records: InstructionDataset, examples: Examples, console: Console) -> None:
        """Prints the schema found and the first example as the model will see it; what it learns stands out."""
        schema, row = records.schema, examples.table[0]
        found = [name for name in schema.fields if name in records.rows.column_names]
        console.print(Text(f"{records.origin}: schema {schema.name} ({', '.join(found)}), template {records.template}"))
        bounds = [0, *row["supervised"], len(row["input_ids"])]
        pieces = [self.tokenizer.decode(row["input_ids"][a:b]) for a, b in pairwise(bounds)]
        styled = [(text[:SHOWN_CHARACTERS], "bold green" if odd % 2 else "dim") for odd, text in enumerate(pieces)]
        console.print(Text.assemble(*styled))

    def encode(self, records: InstructionDataset) -> Examples:
        """Tokenises the candidate rows.

        Raises:
            UserError: not one row can be scored; the message counts the reasons.
        """
        encoded = self._map(records.rows, records)
        scorable = _scorable(encoded)
        scorable[list(records.set_aside)] = False
        out = np.flatnonzero(~scorable)
        reasons = encoded.select(out)["reason"][:]
        unscored = [(position, reason or SET_ASIDE) for position, reason in zip(out.tolist(), reasons, strict=True)]
        if not scorable.any():
            raise UserError(
                f"none of the {len(encoded)} rows of {records.origin} can be scored: {_counts(unscored)}; give rows "
                "with a response, name their columns with data.columns.*, or raise max_tokens of the proxy or target"
            )
        return _examples(encoded.select(np.flatnonzero(scorable)).remove_columns("reason"), unscored)

    def encode_heldout(self, records: InstructionDataset) -> Examples | None:
        """Tokenises the held-out rows, leaving out those without a response; None where none is held out."""
        if records.heldout is None:
            return None
        encoded = self._map(records.heldout, records)
        keep = np.flatnonzero(_scorable(encoded))
        return _examples(encoded.select(keep).remove_columns("reason"), unscored=[]) if len(keep) else None

    def _map(self, rows: Dataset | JsonRows, records: InstructionDataset) -> Dataset:
        schema = records.schema
        template_named(records.template)
        key = {
            "code": ENCODING_VERSION,
            "rows": hash_content(rows, schema.fields),
            "tokenizer": hash_tokenizer(self.tokenizer),
            "template": records.template,
            "schema": [schema.name, *schema.fields],
            "max_tokens": self.max_tokens,
        }
        table, names = (rows.table, [RECORD_COLUMN]) if isinstance(rows, JsonRows) else (rows, schema.fields)
        table = table.select_columns([name for name in names if name in table.column_names])
        options = {
            "tokenizer": self.tokenizer,
            "template": records.template,
            "schema": schema,
            "max_tokens": self.max_tokens,
        }

        def build(folder: Path) -> None:
            table.map(
                encode_rows,
                with_indices=True,
                batched=True,
                remove_columns=table.column_names,
                features=ENCODED,
                cache_file_name=str(folder / ENCODED_FILE),
                new_fingerprint=hash_key(key),
                fn_kwargs=options,
                desc="tokenising",
            )

        cached_result = self.cache.get_or_compute_on_rank_zero("tokens", key, build)
        return Dataset.from_file(str(cached_result.path / ENCODED_FILE))


def encode_rows(
    batch: dict[str, list], indices: list[int], tokenizer: Any, template: str, schema: Schema, max_tokens: int
) -> dict[str, list]:
    """Tokenises a batch of rows; the columns of `ENCODED`, with `reason` empty for a row that can be scored."""
    rows = rows_from_columns(batch)
    encoded: dict[str, list] = {name: [] for name in ENCODED}
    pieces = pieces_of_rows(rows, schema, template, tokenizer)
    for index, row, found in zip(indices, rows, pieces, strict=True):
        reason = reason_of(row, schema)
        refused = found if isinstance(found, str) else ""
        ids, spans, cut = fit([] if isinstance(found, str) else found, max_tokens)
        reason = reason or refused
        supervised = sum(spans[1::2]) - sum(spans[::2])
        if not reason and not supervised:
            reason = NO_RESPONSE_LEFT if cut else NO_RESPONSE
        encoded["example_id"].append(index)
        encoded["input_ids"].append(ids)
        encoded["supervised"].append(spans)
        encoded["tokens"].append(len(ids))
        encoded["response_tokens"].append(supervised)
        encoded["truncated"].append(cut)
        encoded["reason"].append(reason)
    return encoded


def _scorable(encoded: Dataset) -> np.ndarray:
    """[N] bool: the rows without a reason against them."""
    return np.asarray(encoded.with_format("arrow")["reason"][:]) == ""


def _examples(table: Dataset, unscored: list[tuple[int, str]]) -> Examples:
    columns = table.with_format("numpy")
    response_tokens = np.asarray(columns["response_tokens"][:], dtype=np.int32)
    return Examples(
        table=table,
        example_ids=np.asarray(columns["example_id"][:], dtype=np.int64),
        lengths=np.asarray(columns["tokens"][:], dtype=np.int32),
        response_tokens=response_tokens,
        truncated=int(np.sum(columns["truncated"][:])),
        unscored=unscored,
    )


def _counts(unscored: list[tuple[int, str]]) -> str:
    reasons = [reason for _, reason in unscored]
    return "; ".join(f"{reasons.count(reason)} × {reason}" for reason in sorted(set(reasons)))
