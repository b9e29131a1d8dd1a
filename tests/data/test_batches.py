import math
from collections import Counter
from itertools import combinations, pairwise
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradfiltering.data.batches import IGNORED, Batch, LengthBatches, MemberBatches, collate, make_batch_loader
from gradfiltering.data.encoder import Encoder
from gradfiltering.data.length_buckets import LengthBuckets
from gradfiltering.ensembles.data_module import EnsembleDataModule
from gradfiltering.ensembles.proxy_ensemble import ProxyEnsemble
from gradfiltering.ensembles.snapshots import Timeline

PAD = 7


@pytest.fixture
def examples(tokenizer, cache, make_records):
    rows = [("Say it.", "", "right " * (1 + position * 7 % 11)) for position in range(29)] + [("Go.", "", "")]
    return Encoder(tokenizer, 30, cache).encode(make_records(rows))


@pytest.mark.parametrize("workers", [0, 1])
def test_rows_in_files_make_the_same_batches(workers, tokenizer, cache, make_records, monkeypatch):
    rows = make_records([("Say it.", "", "right " * (1 + position % 5)) for position in range(20)])

    def load_batches():
        examples = Encoder(tokenizer, 30, cache).encode(rows).select(np.arange(1, 20))
        buckets = LengthBuckets.of(examples.lengths, 4, 2, 0)
        batches = MemberBatches(examples, buckets, [0, 3], 0, 7, PAD)
        return [(batch.example_id.tolist(), batch.input_ids.tolist()) for batch in make_batch_loader(batches, workers)]

    in_memory = load_batches()
    monkeypatch.setattr("gradfiltering.runs.mapped_arrays.LEAST_MAPPED_BYTES", 1)
    assert load_batches() == in_memory and len(in_memory) == 7


def test_a_members_rows_do_not_depend_on_the_other_members(examples):
    buckets = LengthBuckets.of(examples.lengths, 4, 2, 0)
    steps = buckets.steps_per_epoch
    alone = MemberBatches(examples, buckets, [2], 0, steps, PAD)
    among = MemberBatches(examples, buckets, [0, 1, 2, 5], 0, steps, PAD)
    fewer = MemberBatches(examples, buckets, [2, 0], 0, steps, PAD)
    assert len(alone) == len(among) == len(fewer)
    for step in range(len(alone)):
        rows = alone[step].example_id[0].tolist()
        assert rows == among[step].example_id[2].tolist() == fewer[step].example_id[0].tolist()


def test_stacked_batches_hold_each_members_own_rows(examples):
    members = [0, 3]
    buckets = LengthBuckets.of(examples.lengths, 4, 2, 0)
    steps = MemberBatches(examples, buckets, members, 0, buckets.steps_per_epoch, PAD)
    seen = {member: [] for member in members}
    for step in range(len(steps)):
        batch = steps[step]
        assert batch.input_ids.shape[:2] == batch.labels.shape[:2] == batch.example_id.shape
        assert batch.input_ids.shape[0] == len(members) and batch.input_ids.dtype == torch.int64
        for position, member in enumerate(members):
            for ids, labels, example_id in zip(
                batch.input_ids[position], batch.labels[position], batch.example_id[position], strict=True
            ):
                row = examples.table[int(np.searchsorted(examples.example_ids, int(example_id)))]
                assert ids[: len(row["input_ids"])].tolist() == row["input_ids"]
                assert labels[labels != IGNORED].tolist() == row["input_ids"][slice(*row["supervised"])]
                seen[member].append(int(example_id))
    for member in members:
        assert Counter(seen[member]) == Counter(examples.example_ids.tolist())


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=40), tokens=st.integers(1, 200))
def test_a_pass_covers_every_row_once_within_the_budget(lengths, tokens):
    rows = SimpleNamespace(widths=np.asarray(lengths), sequence_count=1)
    batches = LengthBatches(rows, tokens, PAD, rows=np.arange(len(lengths)))
    cut = [batch.tolist() for batch in batches.cuts]
    assert sorted(row for batch in cut for row in batch) == list(range(len(lengths)))
    for batch in cut:
        padded = len(batch) * max(lengths[row] for row in batch)
        assert padded <= tokens or len(batch) == 1, f"{padded} padded tokens in a batch of at most {tokens}"
    for batch, following in pairwise(cut):
        longer = (len(batch) + 1) * lengths[following[0]]
        assert longer > tokens, "a batch was cut although the next row would have fitted"


@settings(deadline=None, max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=9),
    tokens=st.integers(1, 200),
    overhead=st.integers(0, 100),
)
def test_cuts_by_cost_are_the_cheapest_of_all(lengths, tokens, overhead):
    """Compared with every way to cut the rows, in order of length, into batches within the budget."""
    rows = SimpleNamespace(widths=np.asarray(lengths), sequence_count=1)
    batches = LengthBatches(rows, tokens, PAD, rows=np.arange(len(lengths)), batch_overhead=overhead)
    cut = [[lengths[row] for row in batch] for batch in batches.cuts]
    assert sorted(row for batch in batches.cuts for row in batch.tolist()) == list(range(len(lengths)))

    def cost(parts):
        padded_tokens = [len(part) * max(part) for part in parts]
        allowed = all(padded <= tokens or len(part) == 1 for padded, part in zip(padded_tokens, parts, strict=True))
        return sum(padded_tokens) + overhead * len(parts) if allowed else math.inf

    rising = sorted(lengths)
    every_way = [
        [rising[start:end] for start, end in pairwise((0, *ends, len(rising)))]
        for count in range(len(rising))
        for ends in combinations(range(1, len(rising)), count)
    ]
    assert cost(cut) == min(cost(parts) for parts in every_way)


def test_a_pass_over_some_rows_takes_only_those(examples):
    some = np.asarray([1, 4, 20])
    batches = LengthBatches(examples, 64, PAD, rows=some)
    seen = [example_id for index in range(len(batches)) for example_id in batches[index].example_id.tolist()]
    assert sorted(seen) == examples.example_ids[some].tolist()


def test_collate_pads_on_the_right_and_supervises_the_response_alone():
    rows = {"example_id": [4, 9], "input_ids": [[11, 12, 13, 2], [21, 22]], "supervised": [[1, 4], [1, 2]]}
    batch = collate(rows, PAD, (2,))
    assert batch.input_ids.tolist() == [[11, 12, 13, 2], [21, 22, PAD, PAD]]
    assert batch.labels.tolist() == [[IGNORED, 12, 13, 2], [IGNORED, 22, IGNORED, IGNORED]]
    assert batch.example_id.tolist() == [4, 9]
    stacked = collate(rows, PAD, (2, 1))
    assert stacked.input_ids.shape == (2, 1, 4) and stacked.example_id.tolist() == [[4], [9]]


def test_padding_with_the_end_token_is_never_a_label():
    rows = {"example_id": [0, 1], "input_ids": [[5, 6, 2], [5, 2]], "supervised": [[1, 3], [1, 2]]}
    assert collate(rows, 2, (2,)).labels.tolist() == [[IGNORED, 6, 2], [IGNORED, 2, IGNORED]]


def test_labels_cover_the_response_and_its_end_and_nothing_of_the_prompt(examples, tokenizer):
    batches = LengthBatches(examples, 200, PAD)
    seen = 0
    assert examples.truncated > 0, "some rows should be cut, to be looked at here"
    for index in range(len(batches)):
        batch = batches[index]
        for labels, example_id in zip(batch.labels, batch.example_id.tolist(), strict=True):
            row = examples.table[int(np.searchsorted(examples.example_ids, example_id))]
            supervised = torch.nonzero(labels != IGNORED).flatten().tolist()
            assert supervised == list(range(*row["supervised"]))
            if not row["lost_tokens"]:
                assert labels[supervised[-1]] == tokenizer.eos_token_id
                assert tokenizer.decode(labels[supervised[:-1]]) == "right " * (1 + example_id * 7 % 11)
            seen += 1
    assert seen == len(examples) == 29


def test_batch_moves_tensors_and_keeps_ids():
    batch = collate({"example_id": [3], "input_ids": [[1, 2]], "supervised": [[1, 2]]}, PAD, (1,))
    moved = batch.to(torch.device("meta"))
    assert isinstance(moved, Batch) and moved.input_ids.is_meta and moved.labels.is_meta
    assert moved.example_id.tolist() == [3]


class TestDataModule:
    @pytest.fixture
    def data(self, examples):
        buckets = LengthBuckets.of(examples.lengths, 4, 2, 0)
        stretches = Timeline(buckets.steps_per_epoch).list_stretches(0, 2)
        return EnsembleDataModule(examples, range(3), buckets, PAD, 0, stretches)

    def test_training_batches_follow_the_trainers_epoch(self, data, examples):
        buckets = LengthBuckets.of(examples.lengths, 4, 2, 0)
        for current in (0, 1):
            for skipped_steps in (0, 2):  # by a run that was interrupted
                steps_taken = current * buckets.steps_per_epoch + skipped_steps
                module = Mock(spec=ProxyEnsemble, steps_taken=steps_taken)
                data.trainer = SimpleNamespace(current_epoch=current, lightning_module=module)
                batches = list(data.train_dataloader())
                for member in range(3):
                    drawn = [examples.example_ids[rows].tolist() for rows in buckets.epoch(member, current + 1)]
                    assert [batch.example_id[member].tolist() for batch in batches] == drawn[skipped_steps:]

    def test_workers_change_nothing(self, data, examples):
        batches = LengthBatches(examples, 200, PAD)
        here, there = (list(make_batch_loader(batches, workers)) for workers in (0, 1))
        assert len(here) == len(there) > 1
        for one, other in zip(here, there, strict=True):
            assert torch.equal(one.input_ids, other.input_ids) and torch.equal(one.example_id, other.example_id)
