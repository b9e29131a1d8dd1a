"""Rows read from the buffers of a table are those that `datasets` reads."""

import pickle

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Sequence, Value, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st

from gradfiltering.data.batches import collate, collate_pairs
from gradfiltering.data.token_rows import TokenRows
from tests.reference.batches import pad_row_by_row

PAD = 7
FEATURES = Features({"input_ids": Sequence(Value("int32"))})


def make_table(rows=range(40), first_token=0):
    tokens = [[first_token + row * 100 + position for position in range(row % 6)] for row in rows]
    return Dataset.from_dict({"input_ids": tokens}, features=FEATURES)


def pieces():
    return concatenate_datasets([make_table(range(11)), make_table(range(0)), make_table(range(5, 30), 10_000)])


@pytest.mark.parametrize(
    "table",
    [
        make_table(),
        pieces(),
        pieces().select(range(3, 30)),
        pieces().select([30, 2, 2, 17, 11, 10]),
        pieces().select([30, 2, 17, 11, 10, 4]).select([5, 0, 1]),
        concatenate_datasets([make_table().select([3, 9, 1]), pieces().select([20, 4, 35])]),
        pieces().select([]),
    ],
    ids=["whole", "pieces", "slice", "selection", "selection of a selection", "joined selections", "no rows"],
)
def test_any_table_is_read_as_it_is(table):
    positions = np.random.default_rng(0).integers(len(table), size=50) if len(table) else np.arange(0)
    rows_read = TokenRows(table).read("input_ids", positions)
    assert [row.tolist() for row in rows_read] == table[positions]["input_ids"]


def test_another_process_is_sent_the_files_and_no_tokens(tmp_path):
    make_table(range(4000)).save_to_disk(tmp_path / "table")
    table = Dataset.load_from_disk(tmp_path / "table")
    token_rows, positions = TokenRows(table), np.arange(100)
    token_rows.read("input_ids", positions)
    sent = pickle.dumps(token_rows)
    assert len(sent) < 10_000
    assert [row.tolist() for row in pickle.loads(sent).read("input_ids", positions)] == table[positions]["input_ids"]


@st.composite
def rows_with_spans(draw):
    tokens = draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=12))
    bounds = sorted(draw(st.lists(st.integers(0, len(tokens)), max_size=6)))
    return tokens, bounds[: len(bounds) // 2 * 2]


@settings(deadline=None, max_examples=100)
@given(rows=st.lists(rows_with_spans(), max_size=8), as_arrays=st.booleans())
def test_batches_are_those_padded_row_by_row(rows, as_arrays):
    tokens, spans = [row[0] for row in rows], [row[1] for row in rows]
    given_tokens, given_spans = (
        [np.asarray(values, dtype=np.int32) for values in column] if as_arrays else column for column in (tokens, spans)
    )
    columns = {"example_id": list(range(len(rows))), "input_ids": given_tokens, "supervised": given_spans}
    batch = collate(columns, PAD, (len(rows),))
    longest = max(map(len, tokens), default=1)
    for padded, expected in zip(
        (batch.input_ids, batch.labels), pad_row_by_row(tokens, spans, longest, PAD), strict=True
    ):
        assert padded.dtype == torch.int64 and torch.equal(padded, expected)
    assert batch.example_id.tolist() == columns["example_id"] and batch.lengths.tolist() == list(map(len, tokens))

    rejected = {"rejected_ids": given_tokens[::-1], "rejected_supervised": given_spans[::-1]}
    pairs = collate_pairs({**columns, **rejected}, np.zeros((len(rows), 2)), PAD, (len(rows),))
    for side, order in enumerate((slice(None), slice(None, None, -1))):
        input_ids, labels = pad_row_by_row(tokens[order], spans[order], longest, PAD)
        assert torch.equal(pairs.input_ids[:, side], input_ids) and torch.equal(pairs.labels[:, side], labels)
