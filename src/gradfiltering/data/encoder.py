"""The encoder: from rows to tokenised examples, with the reason for every row that cannot be scored."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Value
from datasets import Sequence as SequenceFeature
from rich.console import Console
from rich.text import Text

from gradfiltering.data.dataset import InstructionDataset, hash_content
from gradfiltering.data.encoding import (
    NO_RESPONSE,
    NO_RESPONSE_LEFT,
    cut_to_length,
    find_reason,
    shorten_row,
    tokenize_rows,
)
from gradfiltering.data.examples import REJECTED_COLUMNS, Examples, Rows, read_numbers
from gradfiltering.data.json_rows import RECORD_COLUMN, JsonRows, rows_from_columns
from gradfiltering.data.preference_schema import EQUAL_WITHIN_LENGTH, SIDE_SCHEMA, Preference
from gradfiltering.data.row_columns import Row
from gradfiltering.data.schemas import Columns, Schema
from gradfiltering.data.templates import find_template, layout_name
from gradfiltering.data.tokenising import ReusableTokens, TokenisingSettings, tokenize_table
from gradfiltering.data.tokenizer_hash import hash_tokenizer
from gradfiltering.errors import UserError
from gradfiltering.runs.cache import Cache

ENCODING_VERSION = 5  # raise it when the same rows would be encoded otherwise
LENGTH_PERCENTILE = 99
SHOWN_CHARACTERS = 600  # of each stretch of the example on the screen
SET_ASIDE = "held out for evaluation (data.heldout.share)"
OTHER_PART = "of the other part of the study"

ENCODED = Features(
    {
        "example_id": Value("int64"),
        "input_ids": SequenceFeature(Value("int32")),
        "supervised": SequenceFeature(Value("int32")),
        "tokens": Value("int32"),
        "response_tokens": Value("int32"),
        "lost_tokens": Value("int32"),
        "reason": Value("string"),
        "not_shown": SequenceFeature(Value("string")),
    }
)
ENCODED_PAIRS = Features(
    {
        **ENCODED,
        **{pair_name: ENCODED[plain_name] for pair_name, plain_name in REJECTED_COLUMNS.items()},
        "rejected_tokens": Value("int32"),
    }
)


class Encoder:
    """Tokenise rows for one model: the prompt by template, every response closed by the token that ends it there.

    A row longer than `max_tokens` is cut as `encoding.shorten_row` and `encoding.cut_to_length` say.

    Args:
        tokenizer: a `transformers` tokenizer with an end-of-sequence token.
        max_tokens: longest example in tokens.
        cache: of tokenised tables.
        settings: number of processes; no result depends on it.
        longer_length: of examples that the cache may hold; their rows of up to `max_tokens` are not tokenised again.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_tokens: int,
        cache: Cache,
        settings: TokenisingSettings | None = None,
        longer_length: int | None = None,
    ):
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-sequence token; set one in its tokenizer_config.json")
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.cache = cache
        self.settings = settings or TokenisingSettings()
        self.longer_length = longer_length

    def encode_all(self, dataset: InstructionDataset) -> Rows:
        """Tokenise candidate and held-out rows."""
        return Rows(self.encode(dataset), self.encode_heldout(dataset))

    def show_example(self, dataset: InstructionDataset, examples: Examples, console: Console) -> None:
        """Print the schema found and the first example as the model will see it; its response stands out."""
        schema, first_example = dataset.schema, examples.table[0]
        present_columns = ", ".join(name for name in schema.fields if name in dataset.rows.column_names)
        coloured = ", with what it learns in green" if console.color_system is not None else ""
        heading = f"{dataset.origin}: schema {schema.name} ({present_columns}); a row as the model reads it{coloured}:"
        console.print(Text(heading))
        token_ids = first_example["input_ids"]
        piece_bounds = [0, *first_example["supervised"], len(token_ids)]
        example_text = Text()
        for piece_index, (start, stop) in enumerate(pairwise(piece_bounds)):
            piece_text = self.tokenizer.decode(token_ids[start:stop])[:SHOWN_CHARACTERS]
            example_text.append(piece_text, "bold green" if piece_index % 2 else "dim")
        console.print(example_text)

    def encode(self, dataset: InstructionDataset) -> Examples:
        """Tokenise the candidate rows.

        Raises:
            UserError: not one row can be scored; the message counts the reasons.
        """
        encoded_rows = self._map(dataset.rows, dataset)
        is_scorable = _mark_scorable(encoded_rows)
        is_scorable[[*dataset.set_aside, *dataset.dropped, *dataset.other_part]] = False
        unscored_positions = np.flatnonzero(~is_scorable)
        reason_texts = encoded_rows.select(unscored_positions)["reason"][:]
        unscored = [
            (row_position, unscored_reason or _reason_for_leaving_out(dataset, row_position))
            for row_position, unscored_reason in zip(unscored_positions.tolist(), reason_texts, strict=True)
        ]
        if not is_scorable.any():
            raise UserError(
                f"none of the {len(encoded_rows)} rows of {dataset.origin} can be scored: "
                f"{_count_reasons(unscored)}; give rows with a response, name their columns, or allow "
                "longer examples",
                owner=Columns,
                arguments=dataset.schema.options,
            )
        return _make_examples(
            encoded_rows.select(np.flatnonzero(is_scorable)).remove_columns("reason"), unscored, self.max_tokens
        )

    def encode_heldout(self, dataset: InstructionDataset) -> Examples | None:
        """Tokenise the held-out rows, leaving out those without a response; None where none is held out."""
        if dataset.heldout is None:
            return None
        encoded_rows = self._map(dataset.heldout, dataset)
        scorable_positions = np.flatnonzero(_mark_scorable(encoded_rows))
        if not len(scorable_positions):
            return None
        return _make_examples(encoded_rows.select(scorable_positions).remove_columns("reason"), [], self.max_tokens)

    def _map(self, dataset_rows: Dataset | JsonRows, dataset: InstructionDataset) -> Dataset:
        schema, template = dataset.schema, dataset.template_for(self.tokenizer)
        find_template(template)
        cache_key = {
            "code": ENCODING_VERSION,
            "rows": hash_content(dataset_rows, schema.fields),
            "tokenizer": hash_tokenizer(self.tokenizer),
            "template": template,
            "schema": repr(schema),
            "max_tokens": self.max_tokens,
        }
        if isinstance(dataset_rows, JsonRows):
            all_columns: Dataset = dataset_rows.table
            needed_columns: tuple[str, ...] = (RECORD_COLUMN,)
        else:
            all_columns, needed_columns = dataset_rows, schema.fields
        row_table = all_columns.select_columns([name for name in needed_columns if name in all_columns.column_names])
        encode_batch = partial(
            encode_rows, tokenizer=self.tokenizer, template=template, schema=schema, max_tokens=self.max_tokens
        )
        features = ENCODED_PAIRS if isinstance(schema, Preference) else ENCODED
        longer = None
        if self.longer_length is not None and self.longer_length > self.max_tokens:
            longer_key = {**cache_key, "max_tokens": self.longer_length}
            longer = ReusableTokens(longer_key, partial(_mark_whole, max_tokens=self.max_tokens))
        return tokenize_table(row_table, encode_batch, features, self.cache, cache_key, self.settings, longer)


def find_max_tokens(whole_encoder: Encoder, dataset: InstructionDataset) -> int:
    """Find the longest example worth training on: all that the model reads, or the 99th percentile of the rows.

    Where that percentile is the longest row, as it is of fewer than a hundred, no row is cut that the model could read.

    Args:
        whole_encoder: of examples as long as the model reads.
        dataset: its rows are tokenised; an encoder of the same length takes them from the cache, and one whose
            `longer_length` it is those that are not cut.
    """
    lengths = whole_encoder.encode(dataset).widths
    percentile = int(np.percentile(lengths, LENGTH_PERCENTILE, method="higher"))
    return whole_encoder.max_tokens if percentile == lengths.max() else percentile


def describe_template(dataset: InstructionDataset, tokenizer: Any) -> str:
    """Name the template of a dataset's rows under a tokenizer, in words."""
    layout = layout_name(dataset.template_for(tokenizer), tokenizer)
    meaning = {"chat": " (the model's own)", "roles": " (a plain layout; the model has no chat template for them)"}
    return layout + meaning.get(layout, "")


def encode_rows(
    batch: dict[str, list[Any]], indices: list[int], tokenizer: Any, template: str, schema: Schema, max_tokens: int
) -> dict[str, list[Any]]:
    """Tokenise a batch of rows; the columns of `ENCODED`, with `reason` empty for a row that can be scored.

    Preference rows get the columns of `ENCODED_PAIRS`.
    """
    dataset_rows = rows_from_columns(batch)
    if isinstance(schema, Preference):
        return _encode_pairs(dataset_rows, indices, tokenizer, template, schema, max_tokens)
    return _encode_sequences(dataset_rows, indices, tokenizer, template, schema, max_tokens)


def _encode_sequences(
    dataset_rows: Sequence[Row], indices: list[int], tokenizer: Any, template: str, schema: Schema, max_tokens: int
) -> dict[str, list[Any]]:
    encoded_rows: dict[str, list[Any]] = {column_name: [] for column_name in ENCODED}
    tokenized_rows = tokenize_rows(dataset_rows, schema, template, tokenizer)
    for example_id, row_values, tokenized_row in zip(indices, dataset_rows, tokenized_rows, strict=True):
        text_pieces = tokenized_row.pieces
        whole_tokens = sum(len(piece_ids) for piece_ids, _ in text_pieces)
        if whole_tokens > max_tokens:
            text_pieces = shorten_row(row_values, schema, template, tokenizer, text_pieces, max_tokens)
        token_ids, supervised_spans = cut_to_length(text_pieces, max_tokens)
        unscored_reason = find_reason(row_values, schema) or tokenized_row.reason
        supervised_count = sum(supervised_spans[1::2]) - sum(supervised_spans[::2])
        if not unscored_reason and not supervised_count:
            unscored_reason = NO_RESPONSE_LEFT if whole_tokens > max_tokens else NO_RESPONSE
        encoded_rows["example_id"].append(example_id)
        encoded_rows["input_ids"].append(token_ids)
        encoded_rows["supervised"].append(supervised_spans)
        encoded_rows["tokens"].append(len(token_ids))
        encoded_rows["response_tokens"].append(supervised_count)
        encoded_rows["lost_tokens"].append(whole_tokens - len(token_ids))
        encoded_rows["reason"].append(unscored_reason)
        encoded_rows["not_shown"].append(list(tokenized_row.not_shown))
    return encoded_rows


def _encode_pairs(
    dataset_rows: Sequence[Row], indices: list[int], tokenizer: Any, template: str, schema: Preference, max_tokens: int
) -> dict[str, list[Any]]:
    """Tokenise both sides of preference rows, each cut to `max_tokens` as a row of its own is."""
    sides = [
        _encode_sequences(side_rows, indices, tokenizer, template, SIDE_SCHEMA, max_tokens)
        for side_rows in zip(*map(schema.split, dataset_rows), strict=True)
    ]
    chosen, rejected = sides
    pairs = {**chosen, "rejected_tokens": rejected["tokens"]}
    pairs |= {pair_name: rejected[plain_name] for pair_name, plain_name in REJECTED_COLUMNS.items()}
    for column_name in ("tokens", "response_tokens", "lost_tokens"):
        pairs[column_name] = [sum(counts) for counts in zip(chosen[column_name], rejected[column_name], strict=True)]
    pairs["not_shown"] = [
        sorted({*chosen_names, *rejected_names})
        for chosen_names, rejected_names in zip(chosen["not_shown"], rejected["not_shown"], strict=True)
    ]
    pairs["reason"] = []
    for position, row_values in enumerate(dataset_rows):
        reason = schema.find_reason(row_values) or chosen["reason"][position] or rejected["reason"][position]
        if not reason and chosen["input_ids"][position] == rejected["input_ids"][position]:
            reason = EQUAL_WITHIN_LENGTH
        pairs["reason"].append(reason)
    return pairs


def _mark_whole(encoded_rows: pa.Table, max_tokens: int) -> np.ndarray:
    """[B] bool: the rows without a cut, of which no sequence is longer than `max_tokens`."""
    lengths = encoded_rows["tokens"].to_numpy()
    if "rejected_tokens" in encoded_rows.column_names:
        rejected_lengths = encoded_rows["rejected_tokens"].to_numpy()
        lengths = np.maximum(lengths - rejected_lengths, rejected_lengths)
    is_whole: np.ndarray = (encoded_rows["lost_tokens"].to_numpy() == 0) & (lengths <= max_tokens)
    return is_whole


def _mark_scorable(encoded_rows: Dataset) -> np.ndarray:
    """[N] bool: the rows without a reason against them."""
    is_scorable: np.ndarray = pc.equal(encoded_rows.data["reason"], "").to_numpy()
    return is_scorable


def _make_examples(row_table: Dataset, unscored: list[tuple[int, str]], max_tokens: int) -> Examples:
    not_shown = Counter(name for names in row_table["not_shown"] for name in names)
    row_table = row_table.remove_columns("not_shown")
    lost_tokens = read_numbers(row_table, "lost_tokens", np.int32)
    lengths = read_numbers(row_table, "tokens", np.int32)
    sequence_lengths = None
    if "rejected_tokens" in row_table.column_names:
        rejected_lengths = read_numbers(row_table, "rejected_tokens", np.int32)
        sequence_lengths = np.stack([lengths - rejected_lengths, rejected_lengths], 1)
        row_table = row_table.remove_columns("rejected_tokens")
    return Examples(
        table=row_table,
        example_ids=read_numbers(row_table, "example_id", np.int64),
        lengths=lengths,
        response_tokens=read_numbers(row_table, "response_tokens", np.int32),
        truncated=int(np.count_nonzero(lost_tokens)),
        lost_tokens=int(lost_tokens.sum()),
        max_tokens=max_tokens,
        unscored=unscored,
        not_shown=dict(sorted(not_shown.items())),
        not_shown_of=len(row_table),
        sequence_lengths=sequence_lengths,
    )


def _count_reasons(unscored: list[tuple[int, str]]) -> str:
    reason_texts = [unscored_reason for _, unscored_reason in unscored]
    return "; ".join(
        f"{reason_texts.count(unscored_reason)} × {unscored_reason}" for unscored_reason in sorted(set(reason_texts))
    )


def _reason_for_leaving_out(dataset: InstructionDataset, row_position: int) -> str:
    if row_position in dataset.other_part:
        return OTHER_PART
    return dataset.dropped.get(row_position, SET_ASIDE)
