"""From rows to tokenised examples, with the reason for every row that cannot be scored."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Features, Value, concatenate_datasets
from datasets import Sequence as SequenceFeature
from numpy.typing import DTypeLike
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
from gradfiltering.data.json_rows import RECORD_COLUMN, JsonRows, rows_from_columns
from gradfiltering.data.preference_schema import EQUAL_WITHIN_LENGTH, SIDE_SCHEMA, Preference
from gradfiltering.data.row_columns import Row
from gradfiltering.data.row_duplicates import find_first_equal
from gradfiltering.data.schemas import Columns, Schema
from gradfiltering.data.templates import find_template, layout_name
from gradfiltering.data.tokenising import TokenisingSettings, tokenise_table
from gradfiltering.errors import UserError
from gradfiltering.runs.cache import Cache
from gradfiltering.runs.mapped_arrays import map_large_array

ENCODING_VERSION = 5  # raise it when the same rows would be encoded otherwise
LENGTH_PERCENTILE = 99
SHOWN_CHARACTERS = 600  # of each stretch of the example on the screen
# Options of a tokenizer that say where it lies, how it pads, or what stands in the hash anyway.
WITHOUT_EFFECT = re.compile(
    r"name_or_path|is_local|local_files_only|model_max_length|(padding|truncation)_side|chat_template|"
    r".*_(file|token|tokens|tokens_decoder)"
)
READ_AT_ONCE = 10_000  # rows of a tokenised table
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
REJECTED_COLUMNS = {"rejected_ids": "input_ids", "rejected_supervised": "supervised"}
ENCODED_PAIRS = Features(
    {
        **ENCODED,
        **{pair_name: ENCODED[plain_name] for pair_name, plain_name in REJECTED_COLUMNS.items()},
        "rejected_tokens": Value("int32"),
    }
)


@dataclass(frozen=True)
class Examples:
    """Tokenised examples that can be scored.

    Attributes:
        table: one row an example: `example_id`, `input_ids` (each response closed by its end token), `supervised`
            (the spans of `input_ids` to learn, as start, stop, start, stop, …), `tokens`, `response_tokens` (those
            in the spans), `lost_tokens` (cut off, 0 for a whole row). Of a preference row `input_ids` and `supervised`
            are the prompt with the chosen answer, `rejected_ids` and `rejected_supervised` that with the rejected one,
            and the counts are of both.
        example_ids: [N] int64, ascending.
        lengths: [N] int32, all tokens.
        response_tokens: [N] int32.
        truncated: number of rows that were cut.
        lost_tokens: number of tokens that they lost.
        max_tokens: the longest that an example could be.
        unscored: example id and reason of every row left out.
        not_shown: what rows hold and the model does not see -> number of examples.
        not_shown_of: examples that these were counted among, of which a few may have been drawn since.
        sequence_lengths: [N, 2] int32, tokens of each of a preference row's two sequences; None for other rows.
        reference_nll: [N, 2] float64, negative log-likelihood of both answers of preference rows under the base model
            without adapters, in nats; None where it was not measured.
    """

    table: Dataset
    example_ids: np.ndarray
    lengths: np.ndarray
    response_tokens: np.ndarray
    truncated: int
    lost_tokens: int
    max_tokens: int
    unscored: list[tuple[int, str]]
    not_shown: Mapping[str, int] = field(default_factory=dict)
    not_shown_of: int = 0
    sequence_lengths: np.ndarray | None = None
    reference_nll: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.example_ids)

    @property
    def is_paired(self) -> bool:
        """True for preference rows, of two sequences each."""
        return self.sequence_lengths is not None

    @property
    def sequence_count(self) -> int:
        """Number of sequences of an example."""
        return 2 if self.is_paired else 1

    @property
    def widths(self) -> np.ndarray:
        """[N] tokens of each example's longest sequence."""
        return self.lengths if self.sequence_lengths is None else self.sequence_lengths.max(1)

    def sequences(self) -> "Examples":
        """Return the sequences as examples of their own: those with the chosen answers, then the rejected ones.

        The sequences of example n are numbers n and N + n, which are their ids, too. Other rows are returned as they
        are.
        """
        if self.sequence_lengths is None:
            return self
        chosen = self._chosen_table()
        rejected = self.table.select_columns(list(REJECTED_COLUMNS)).rename_columns(REJECTED_COLUMNS)
        return _plain_examples(concatenate_datasets([chosen, rejected]), self.sequence_lengths.T.ravel(), self)

    def chosen_sequences(self) -> "Examples":
        """Return the prompts with their chosen answers, under the examples' own ids; other rows as they are."""
        if self.sequence_lengths is None:
            return self
        chosen = _plain_examples(self._chosen_table(), self.sequence_lengths[:, 0], self)
        table = chosen.table.remove_columns("example_id").add_column("example_id", self.example_ids)
        return replace(chosen, table=table, example_ids=self.example_ids)

    def sequence_positions(self, row_positions: np.ndarray) -> np.ndarray:
        """Return the positions of some rows' sequences in `sequences()`, those of a row side by side."""
        offsets = len(self) * np.arange(self.sequence_count)
        positions: np.ndarray = (row_positions[:, None] + offsets).ravel()
        return positions

    def _chosen_table(self) -> Dataset:
        return self.table.select_columns(["input_ids", "supervised"])

    @property
    def tokens(self) -> int:
        """Tokens of one pass over all examples, padding not counted."""
        return int(self.lengths.sum())

    def summary(self, dataset_rows: int, left_out: Sequence[tuple[int, str]] = ()) -> dict[str, Any]:
        """The part of `summary.json` about the data.

        Args:
            rows: in all.
            left_out: id and reason of examples that a scorer gave no score.
        """
        unscored = [*self.unscored, *left_out]
        return {
            "examples": dataset_rows,
            "unscored": len(unscored),
            "unscored_reasons": dict(Counter(unscored_reason for _, unscored_reason in unscored)),
            "truncated": {"rows": self.truncated, "tokens": self.lost_tokens},
            "max_tokens": self.max_tokens,
            "tokens": self.tokens,
            "not_shown": dict(self.not_shown),
        }

    def warnings(self) -> list[str]:
        """Name what the model does not see of the rows, with the number of examples."""
        counted_examples = self.not_shown_of or len(self)
        return [
            f"{count} of {counted_examples} examples have {name} that the template does not show, so that nothing is "
            "learnt of it; choose a template that shows it, or drop it from the rows"
            for name, count in self.not_shown.items()
        ]

    def select(self, example_ids: Sequence[int] | np.ndarray) -> "Examples":
        """The examples with these ids, in ascending order of id."""
        row_positions = np.flatnonzero(np.isin(self.example_ids, np.asarray(example_ids)))
        selected_table = self.table.select(row_positions)
        lost_tokens = read_numbers(selected_table, "lost_tokens", np.int32)
        return replace(
            self,
            table=selected_table,
            example_ids=map_large_array(self.example_ids[row_positions]),
            lengths=map_large_array(self.lengths[row_positions]),
            response_tokens=map_large_array(self.response_tokens[row_positions]),
            truncated=int(np.count_nonzero(lost_tokens)),
            lost_tokens=int(lost_tokens.sum()),
            unscored=[],
            not_shown={},
            sequence_lengths=None if self.sequence_lengths is None else self.sequence_lengths[row_positions],
            reference_nll=None if self.reference_nll is None else self.reference_nll[row_positions],
        )


@dataclass(frozen=True)
class Rows:
    """The examples to train on and score, and the held-out ones (None where nothing is held out)."""

    examples: Examples
    heldout: Examples | None


def read_numbers(table: Dataset, column_name: str, dtype: DTypeLike) -> np.ndarray:
    """Return a column of numbers, [N] of the type given, which lie in a file where there are many.

    It is read some thousand rows at a time: read at once, a table of selected rows takes hundreds of bytes a row.
    """
    numbers = np.empty(len(table), dtype=dtype)
    first_row = 0
    for batch in table.select_columns([column_name]).with_format("arrow").iter(READ_AT_ONCE):
        batch_numbers = batch[column_name].to_numpy()
        numbers[first_row : first_row + len(batch_numbers)] = batch_numbers
        first_row += len(batch_numbers)
    return map_large_array(numbers)


def hash_examples(examples: Examples) -> str:
    """Digest of ids, tokens and the spans to learn."""
    digest = hashlib.sha256(np.ascontiguousarray(examples.example_ids).tobytes())
    column_names = ["input_ids", "supervised", *(REJECTED_COLUMNS if examples.is_paired else ())]
    for batch in examples.table.select_columns(column_names).with_format("arrow").iter(READ_AT_ONCE):
        for column_name in column_names:
            column = batch[column_name].combine_chunks()
            digest.update(column.value_lengths().to_numpy(zero_copy_only=False).tobytes())
            digest.update(column.flatten().to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()[:32]


def digest_rows(examples: Examples) -> np.ndarray:
    """Return [N, 2] uint64, a digest of each row's tokens, equal for rows of equal tokens."""
    digests = np.empty((len(examples), 2), dtype=np.uint64)
    first_row = 0
    for batch in examples.table.select_columns(["input_ids"]).with_format("arrow").iter(READ_AT_ONCE):
        column = batch["input_ids"].combine_chunks()
        row_ends = np.cumsum(column.value_lengths().to_numpy(zero_copy_only=False))
        tokens = np.ascontiguousarray(column.flatten().to_numpy(zero_copy_only=False))
        batch_digests = b"".join(
            hashlib.blake2b(row_tokens.tobytes(), digest_size=16).digest()
            for row_tokens in np.split(tokens, row_ends[:-1])
        )
        digests[first_row : first_row + len(column)] = np.frombuffer(batch_digests, dtype=np.uint64).reshape(-1, 2)
        first_row += len(column)
    return digests


def number_equal_rows(examples: Examples) -> np.ndarray:
    """Return [N] int64: for each row the position of the first row of the same tokens."""
    return find_first_equal(digest_rows(examples))


def hash_tokenizer(tokenizer: Any) -> str:
    """Digest of what decides a tokenizer's output: its rules, vocabulary and special tokens."""
    if tokenizer.is_fast:
        backend_rules = json.loads(tokenizer.backend_tokenizer.to_str())
        tokenizer_rules = json.dumps(
            {**backend_rules, "padding": None, "truncation": None}
        )  # left over from the last call
    else:
        tokenizer_rules = _slow_rules(tokenizer)
    special_tokens = repr(sorted(tokenizer.special_tokens_map.items(), key=str)) + repr(tokenizer.chat_template)
    return hashlib.sha256((tokenizer_rules + special_tokens).encode()).hexdigest()[:32]


def _slow_rules(tokenizer: Any) -> str:
    """Describe what decides the ids of a tokenizer written in Python: class, options, vocabulary, files.

    The files hold what the vocabulary does not: merges, or the pieces' scores in a sentencepiece model.
    """
    with TemporaryDirectory() as folder:
        tokenizer.save_vocabulary(folder)
        file_digests = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())
        }
    deciding_options = {
        name: value for name, value in tokenizer.init_kwargs.items() if not WITHOUT_EFFECT.fullmatch(name)
    }
    rules = (tokenizer.get_vocab(), tokenizer.added_tokens_decoder, deciding_options, file_digests)
    return type(tokenizer).__name__ + repr([sorted(entries.items()) for entries in rules])


class Encoder:
    """Tokenise rows for one model: the prompt by template, every response closed by the token that ends it there.

    A row longer than `max_tokens` is cut as `encoding.shorten_row` and `encoding.cut_to_length` say.

    Args:
        tokenizer: a `transformers` tokenizer with an end-of-sequence token.
        max_tokens: longest example in tokens.
        cache: of tokenised tables.
        settings: number of processes; no result depends on it.
    """

    def __init__(self, tokenizer: Any, max_tokens: int, cache: Cache, settings: TokenisingSettings | None = None):
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-sequence token; set one in its tokenizer_config.json")
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.cache = cache
        self.settings = settings or TokenisingSettings()

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
        is_scorable = _scorable(encoded_rows)
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
        return _examples(
            encoded_rows.select(np.flatnonzero(is_scorable)).remove_columns("reason"), unscored, self.max_tokens
        )

    def encode_heldout(self, dataset: InstructionDataset) -> Examples | None:
        """Tokenise the held-out rows, leaving out those without a response; None where none is held out."""
        if dataset.heldout is None:
            return None
        encoded_rows = self._map(dataset.heldout, dataset)
        scorable_positions = np.flatnonzero(_scorable(encoded_rows))
        if not len(scorable_positions):
            return None
        return _examples(encoded_rows.select(scorable_positions).remove_columns("reason"), [], self.max_tokens)

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
        return tokenise_table(row_table, encode_batch, features, self.cache, cache_key, self.settings)


def find_max_tokens(whole_encoder: Encoder, dataset: InstructionDataset) -> int:
    """Find the longest example worth training on: all that the model reads, or the 99th percentile of the rows.

    Where that percentile is the longest row, as it is of fewer than a hundred, no row is cut that the model could read.

    Args:
        whole_encoder: of examples as long as the model reads.
        dataset: its rows are tokenised; an encoder of the same length takes them from the cache.
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


def _plain_examples(table: Dataset, lengths: np.ndarray, origin: Examples) -> Examples:
    """Return sequences of preference rows as examples of their own, numbered from 0."""
    example_ids = np.arange(len(table))
    spans = table.select_columns(["supervised"])["supervised"]
    response_tokens = [sum(row_spans[1::2]) - sum(row_spans[::2]) for row_spans in spans]
    return Examples(
        table=table.add_column("example_id", example_ids),
        example_ids=example_ids,
        lengths=np.ascontiguousarray(lengths, dtype=np.int32),
        response_tokens=np.asarray(response_tokens, dtype=np.int32),
        truncated=0,
        lost_tokens=0,
        max_tokens=origin.max_tokens,
        unscored=[],
    )


def _scorable(encoded_rows: Dataset) -> np.ndarray:
    """[N] bool: the rows without a reason against them."""
    is_scorable: np.ndarray = pc.equal(encoded_rows.data["reason"], "").to_numpy()
    return is_scorable


def _examples(row_table: Dataset, unscored: list[tuple[int, str]], max_tokens: int) -> Examples:
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
