"""Rows that a longer encoding holds whole are taken from it, and all is as if they had been tokenised again."""

from dataclasses import replace

import numpy as np
import pytest

from gradfiltering.data import encoder as encoder_module
from gradfiltering.data.encoder import Encoder, find_max_tokens
from gradfiltering.data.tokenising import TokenisingSettings
from gradfiltering.runs.cache import Cache
from tests.data.test_chat_templates import CHATML, LLAMA2, unmarked
from tests.data.test_row_cutting import LONG_ANSWER, LONG_QUESTION, chatty, long_talk
from tests.data.test_tokenising import PAIRS, ROWS, outcome, small_shards

__all__ = ["chatty", "small_shards"]

CONTEXT = 400  # cuts the longest rows, too
TALKS = [
    {"messages": talk}
    for talk in (
        long_talk(), long_talk(second=LONG_QUESTION), long_talk()[:5], long_talk()[:2], long_talk()[:3],
        [{"role": "user", "content": "One?"}, {"role": "assistant", "content": LONG_QUESTION, "weight": 0},
         {"role": "user", "content": "Two?"}, {"role": "assistant", "content": "right"}],
    )
]  # fmt: skip
SINGLE = [
    {"instruction": "Write.", "input": "", "output": "right"},
    {"instruction": LONG_QUESTION, "input": "", "output": "right"},
    {"instruction": "Sum it up.", "input": LONG_QUESTION, "output": "right"},
    {"instruction": "Write.", "input": "", "output": LONG_ANSWER},
    {"instruction": LONG_QUESTION, "input": "", "output": LONG_ANSWER},
    {"instruction": "Nothing.", "input": "", "output": ""},
    {"instruction": LONG_QUESTION, "input": "", "output": ""},
]
LONG_PAIRS = [
    *PAIRS[:7],
    {"prompt": "Say.", "chosen": LONG_ANSWER, "rejected": "no"},
    {"prompt": "Say.", "chosen": "yes", "rejected": LONG_ANSWER},
    {"prompt": "Say.", "chosen": LONG_ANSWER, "rejected": LONG_ANSWER + " and more"},
    {"prompt": LONG_QUESTION, "chosen": "yes", "rejected": "no"},
]


def tokens_files(cache: Cache) -> dict[str, bytes]:
    """The stored results, by folder and file."""
    paths = sorted((cache.folder / "tokens").glob("*/*.arrow"))
    return {"/".join(path.parts[-2:]): path.read_bytes() for path in paths}


@pytest.fixture
def tokenised(monkeypatch) -> list[list[int]]:
    """Positions of the rows of each batch that is tokenised."""
    batches, encode_rows = [], encoder_module.encode_rows

    def counted(batch, indices, **options):
        batches.append(indices)
        return encode_rows(batch, indices, **options)

    monkeypatch.setattr(encoder_module, "encode_rows", counted)
    return batches


def check_reuse(dataset, tokenizer, folder, max_tokens, tokenised):
    """Encodes again and from a longer encoding, compares the files, and counts the rows that were tokenised."""
    again, reusing = Cache(folder / f"again{max_tokens}"), Cache(folder / f"reusing{max_tokens}")
    Encoder(tokenizer, CONTEXT, again).encode(dataset)
    Encoder(tokenizer, max_tokens, again).encode(dataset)
    Encoder(tokenizer, CONTEXT, reusing).encode(dataset)
    tokenised.clear()
    Encoder(tokenizer, max_tokens, reusing, longer_length=CONTEXT).encode(dataset)
    assert tokens_files(reusing) == tokens_files(again)
    assert reusing.list_keys("tokens") == again.list_keys("tokens")
    return sum(map(len, tokenised))


@pytest.mark.parametrize("max_tokens", [150, 399])
@pytest.mark.parametrize(
    ("rows", "template", "chat_template"),
    [
        (SINGLE, "alpaca", None),
        (SINGLE, "plain", None),
        (SINGLE, "chat", CHATML),
        (SINGLE, "chat", unmarked(CHATML)),
        (ROWS, "alpaca", None),
        (TALKS, "conversation", CHATML),
        (TALKS, "conversation", LLAMA2),
        (TALKS, "conversation", unmarked(CHATML)),
        (TALKS, "chat", unmarked(CHATML)),
        (LONG_PAIRS, "plain", None),
        (LONG_PAIRS, "chat", CHATML),
        ([{"text": LONG_ANSWER}, {"text": "short"}], "verbatim", None),
    ],
    ids=lambda value: None if isinstance(value, list) or value is None or len(value) > 20 else value,
)
def test_rows_from_a_longer_encoding_are_byte_for_byte_the_same(
    rows, template, chat_template, max_tokens, write_rows, file_source, chatty, tokenised, tmp_path
):
    schema = "preference" if rows is LONG_PAIRS else "auto"
    dataset = replace(file_source(write_rows(rows), schema=schema), template=template).load(0)
    tokenizer = chatty(chat_template)
    tokenised_rows = check_reuse(dataset, tokenizer, tmp_path, max_tokens, tokenised)
    assert tokenised_rows < len(rows), "short rows are not tokenised again"


def test_shards_take_rows_over(small_shards, make_records, tokenizer, tmp_path, tokenised):
    assert check_reuse(make_records(ROWS), tokenizer, tmp_path, 60, tokenised) < len(ROWS)


def test_several_processes_take_rows_over(small_shards, make_records, tokenizer, cache):
    dataset = make_records(ROWS)
    whole = Encoder(tokenizer, CONTEXT, cache).encode(dataset)
    reusing = Encoder(tokenizer, 60, cache, TokenisingSettings(2), longer_length=CONTEXT).encode(dataset)
    (cache.folder / "tokens").rename(cache.folder / "earlier tokens")
    again = Encoder(tokenizer, 60, cache).encode(dataset)
    assert outcome(reusing) == outcome(again) != outcome(whole)


def test_nothing_is_tokenised_for_the_longer_encoding_alone(make_records, tokenizer, cache, tokenised):
    """Where the cache does not hold it, all rows are tokenised once, to the length that was asked for."""
    dataset = make_records(ROWS)
    Encoder(tokenizer, 60, cache, longer_length=CONTEXT).encode(dataset)
    assert [key["max_tokens"] for key in cache.list_keys("tokens")] == [60]
    assert sum(map(len, tokenised)) == len(ROWS)


def test_after_the_length_was_found_only_longer_rows_are_tokenised(make_records, tokenizer, cache, tokenised):
    rows = [("Q", "", "a")] * 300 + [("Q", "", "a" * 60)]
    dataset = make_records(rows)
    max_tokens = find_max_tokens(Encoder(tokenizer, 512, cache), dataset)
    tokenised.clear()
    examples = Encoder(tokenizer, max_tokens, cache, longer_length=512).encode(dataset)
    assert tokenised == [[300]] and examples.truncated == 1
    np.testing.assert_array_equal(examples.example_ids, np.arange(301))
