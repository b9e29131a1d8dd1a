import tracemalloc

import numpy as np
import pytest
from datasets import Dataset

from gradfiltering.data.encoder import Encoder
from gradfiltering.data.examples import READ_AT_ONCE, digest_rows, read_numbers
from gradfiltering.data.schemas import EMPTY_RESPONSE

ROWS = [("Say it.", "", "right"), ("Name one.", "loudly", "wrong"), ("Go.", "", "  \n"), ("Stop.", "", "x")]


def test_select_keeps_ids_and_ascending_order(tokenizer, cache, make_records):
    encoded = Encoder(tokenizer, 512, cache).encode(make_records(ROWS))
    some = encoded.select([3, 0])
    assert some.example_ids.tolist() == [0, 3] and len(some) == 2 and some.unscored == []
    assert some.table["input_ids"][:] == [encoded.table["input_ids"][position] for position in (0, 2)]
    assert some.lengths.tolist() == encoded.lengths[[0, 2]].tolist()


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("row_count", [0, 1, READ_AT_ONCE, READ_AT_ONCE + 1])
def test_numbers_are_read_in_the_order_of_selected_rows(row_count, dtype):
    numbers = np.random.default_rng(0).integers(0, 1000, 2 * READ_AT_ONCE)
    row_positions = np.random.default_rng(1).permutation(len(numbers))[:row_count]
    table = Dataset.from_dict({"tokens": numbers, "other": numbers}).select(row_positions)
    column = read_numbers(table, "tokens", dtype)
    assert column.dtype == dtype
    np.testing.assert_array_equal(column, numbers[row_positions])


def test_reading_numbers_of_selected_rows_takes_few_bytes_a_row():
    row_count = 50_000
    table = Dataset.from_dict({"tokens": np.arange(2 * row_count)}).select(np.arange(0, 2 * row_count, 2))
    tracemalloc.start()
    read_numbers(table, "tokens", np.int32)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most_bytes < 30 * row_count, "a list of Python numbers takes 40 bytes a row"


def test_rows_of_equal_tokens_have_equal_digests(tokenizer, cache, make_records):
    encoded = Encoder(tokenizer, 512, cache).encode(make_records([ROWS[0], ROWS[3], ROWS[0], ROWS[1]]))
    digests = digest_rows(encoded)
    assert digests.shape == (4, 2) and digests.dtype == np.uint64
    assert len(np.unique(digests, axis=0)) == 3 and digests[0].tolist() == digests[2].tolist()
    np.testing.assert_array_equal(digest_rows(encoded.select([1, 2])), digests[1:3])


def test_summary_counts_rows_tokens_and_cuts(tokenizer, cache, make_records):
    encoded = Encoder(tokenizer, 512, cache).encode(make_records(ROWS))
    assert encoded.summary(4) == {
        "examples": 4, "unscored": 1, "unscored_reasons": {EMPTY_RESPONSE: 1}, "truncated": {"rows": 0, "tokens": 0},
        "max_tokens": 512, "tokens": int(encoded.lengths.sum()), "not_shown": {},
    }  # fmt: skip
