"""A batch is cut into chunks of like length: nothing is lost, little is padded, and no result depends on it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradfiltering.data.batches import IGNORED, Batch
from gradfiltering.gradients.chunks import CHUNK_OVERHEAD, Chunk, cut_chunks, example_lengths, take_chunk
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.models.objectives import ResponseNLL
from tests.reference.gradients import loop_gradients, norm

MEMBER_LENGTHS = [[12, 3, 5], [4, 11, 3], [3, 3, 9]]  # members are padded to 12 where they are put side by side


@st.composite
def member_lengths(draw):
    members, examples = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    lengths = draw(st.lists(st.integers(1, 400), min_size=members * examples, max_size=members * examples))
    return np.reshape(lengths, (members, examples))


@given(member_lengths(), st.integers(1, 3000), st.sampled_from(["cpu", "cuda"]), st.integers(1, 2))
@settings(max_examples=100, deadline=None)
def test_each_example_is_in_one_chunk_wide_enough(lengths, chunk_tokens, device_type, sequences):
    groups = cut_chunks(lengths, len(lengths), chunk_tokens, device_type, sequences)
    seen = np.zeros_like(lengths)
    for group in groups:
        assert len({(chunk.first_member, chunk.end_member) for chunk in group}) == 1
        for chunk in group:
            rows = np.arange(chunk.first_member, chunk.end_member)[:, None]
            seen[rows, chunk.columns] += 1
            assert lengths[rows, chunk.columns].max() == chunk.width
            assert chunk.padded_tokens * sequences <= chunk_tokens or chunk.shape == (1, 1)
    assert (seen == 1).all()
    assert [group[0].first_member for group in groups] == sorted(group[0].first_member for group in groups)


def test_rows_of_members_own_are_padded_to_their_like():
    # In order of length, both members have three short rows and a long one.
    lengths = np.array([[300, 10, 10, 10], [10, 10, 300, 10]])
    chunks = [chunk for group in cut_chunks(lengths, 2, 2000, "cpu") for chunk in group]
    assert sum(chunk.padded_tokens for chunk in chunks) == 2 * (300 + 3 * 10)
    assert len(chunks) == 2  # of both members: three short rows, one long row


def test_members_unlike_each_other_are_gone_through_one_by_one():
    lengths = np.array([[400, 400, 400], [20, 20, 20]])
    groups = cut_chunks(lengths, 2, 10_000, "cpu")
    assert [[(chunk.members, chunk.width) for chunk in group] for group in groups] == [
        [(slice(0, 1), 400)],
        [(slice(1, 2), 20)],
    ]


def test_padding_below_the_overhead_of_a_chunk_is_left():
    lengths = np.array([[10, 10 + CHUNK_OVERHEAD["cpu"] // 2]])
    (chunks,) = cut_chunks(lengths, 1, 10_000, "cpu")
    assert len(chunks) == 1
    (chunks,) = cut_chunks(np.array([[10, 11 + CHUNK_OVERHEAD["cpu"]]]), 1, 10_000, "cpu")
    assert len(chunks) == 2


def test_a_chunk_takes_every_tensor_of_its_rows():
    batch = Batch(
        torch.arange(24).view(2, 3, 4),
        torch.arange(24).view(2, 3, 4) + 100,
        torch.tensor([[0, 1, 2], [3, 4, 5]]),
        prefix_states=torch.arange(48.0).view(2, 3, 4, 2),
        lengths=torch.tensor([[4, 1, 2], [1, 4, 2]]),
    )
    groups = cut_chunks(example_lengths(batch), 2, 12, "cpu")
    taken = {}
    for group in groups:
        for chunk in group:
            part = take_chunk(batch, chunk)
            assert part.input_ids.shape[-1] == part.labels.shape[-1] == part.prefix_states.shape[-2] == chunk.width
            rows = zip(
                part.example_id.flatten(), part.input_ids.flatten(0, 1), part.prefix_states.flatten(0, 1), strict=True
            )
            taken |= {int(example_id): (ids.tolist(), states.tolist()) for example_id, ids, states in rows}
    assert sorted(taken) == [0, 1, 2, 3, 4, 5]
    for example_id, (token_ids, states) in taken.items():
        member, row = divmod(example_id, 3)
        width = len(token_ids)
        assert width >= batch.lengths[member, row]
        assert token_ids == batch.input_ids[member, row, :width].tolist()
        assert states == batch.prefix_states[member, row, :width].tolist()


@pytest.mark.parametrize("chunk_tokens", [1, 13, 30, 10_000])
def test_norms_of_rows_of_unlike_lengths_equal_the_loop(engine, make_model, make_adapters, chunk_tokens):
    model, adapters, _ = make_adapters(make_model())
    generator = torch.Generator().manual_seed(3)
    input_ids = torch.randint(1, 20, (3, 3, 12), generator=generator)
    labels = input_ids.clone()
    labels[..., :2] = IGNORED
    for member, lengths in enumerate(MEMBER_LENGTHS):
        for row, length in enumerate(lengths):
            labels[member, row, length:] = IGNORED
    batch = Batch(input_ids, labels, torch.arange(9).view(3, 3), lengths=torch.tensor(MEMBER_LENGTHS))
    measured = engine(model, chunk_tokens).measure(adapters, batch, with_mean_gradient=True)
    for member, lengths in enumerate(MEMBER_LENGTHS):
        own_adapters = {name: stacked[member] for name, stacked in adapters.items()}
        results = [
            loop_gradients(model, own_adapters, input_ids[member, row, :length], labels[member, row, :length])
            for row, length in enumerate(lengths)
        ]
        norms = torch.tensor([norm(gradient) for _, gradient in results], dtype=torch.float64)
        losses = torch.tensor([loss for loss, _ in results], dtype=torch.float64)
        torch.testing.assert_close(measured.grad_norm[member], norms, rtol=1e-9, atol=0)
        torch.testing.assert_close(measured.loss[member], losses, rtol=1e-9, atol=0)
        for name in adapters:
            expected = torch.stack([gradient[name] for _, gradient in results]).mean(0)
            torch.testing.assert_close(measured.mean_gradient[name][member], expected, rtol=1e-9, atol=1e-14)


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 5), st.integers(1, 9))
def test_widths_are_rounded_by_little_and_never_beyond_the_model(width, most_tokens, members, examples):
    chunk = Chunk(0, members, np.tile(np.arange(examples), (members, 1)), width)
    widened = chunk.widen(most_tokens, chunk_tokens=10_000)
    assert width <= widened.width <= max(width, min(most_tokens, width + max(7, width // 16)))
    assert widened == chunk or widened.padded_tokens <= 10_000


@pytest.mark.parametrize("members", [None, 2])
def test_a_wider_chunk_changes_nothing(make_model, make_adapters, make_batch, members):
    model, adapters, _ = make_adapters(make_model(), members=(0, 1))
    batch = make_batch([12, 5, 9], [4, 4, 2], members)
    engine = FusedEngine(model, ResponseNLL(), 10_000)
    engine.to(torch.device("cpu"))
    expected = engine.measure(adapters, batch, with_mean_gradient=True)
    ((chunk,),) = engine._cut_into_chunks(adapters, batch)
    wide_batch = take_chunk(batch, replace(chunk, width=16))
    assert wide_batch.input_ids.shape[-1] == 16
    found = engine.measure(adapters, wide_batch, with_mean_gradient=True)
    torch.testing.assert_close(found.grad_norm, expected.grad_norm, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-9, atol=0)
