"""What every gradient engine must do, held against the loop twin in float64."""

import pytest
import torch

from gradfiltering.data.batches import Batch
from gradfiltering.errors import UserError
from tests.reference.gradients import loop_gradients, norm

RTOL = 1e-9
LENGTHS, PROMPTS = [12, 5, 9, 7], [4, 4, 2, 3]  # the second row has a response of one token


def twin(model, adapters, batch, lengths):
    """[M][B] losses and gradients by the loop, each row without its padding."""
    members = next(iter(adapters.values())).shape[0]
    found = []
    for member in range(members):
        own = {name: value[member] for name, value in adapters.items()}
        ids = batch.input_ids if batch.input_ids.dim() == 2 else batch.input_ids[member]
        labels = batch.labels if batch.labels.dim() == 2 else batch.labels[member]
        found.append([loop_gradients(model, own, ids[r, :n], labels[r, :n]) for r, n in enumerate(lengths)])
    return found


@pytest.mark.parametrize("members", [None, 3], ids=["shared rows", "rows per member"])
@pytest.mark.parametrize("pad_to", [12, 20], ids=["longest", "padded further"])
def test_norms_and_losses_equal_the_loop(engine, make_model, make_adapters, make_batch, members, pad_to):
    model, adapters, _ = make_adapters(make_model())
    batch = make_batch(LENGTHS, PROMPTS, members, pad_to=pad_to)
    measured = engine(model).measure(adapters, batch, with_mean_gradient=False)
    expected = twin(model, adapters, batch, LENGTHS)
    norms = torch.tensor([[norm(gradient) for _, gradient in rows] for rows in expected], dtype=torch.float64)
    losses = torch.tensor([[loss for loss, _ in rows] for rows in expected], dtype=torch.float64)
    torch.testing.assert_close(
        measured.grad_norm, norms, rtol=RTOL, atol=0, msg=lambda m: f"padding leaks into the norm? {m}"
    )
    torch.testing.assert_close(measured.loss, losses, rtol=RTOL, atol=0)
    assert measured.mean_gradient is None


@pytest.mark.parametrize("members", [None, 3], ids=["shared rows", "rows per member"])
@pytest.mark.parametrize("tokens", [1, 40, 10_000], ids=["one example", "some", "all at once"])
def test_losses_without_gradients_are_those_with_them(engine, make_model, make_adapters, make_batch, members, tokens):
    model, adapters, _ = make_adapters(make_model())
    batch = make_batch(LENGTHS, PROMPTS, members, pad_to=20)
    built = engine(model, tokens)
    losses = built.compute_losses(adapters, batch)
    assert losses.shape == (3, len(LENGTHS)) and not losses.requires_grad
    measured = built.measure(adapters, batch, with_mean_gradient=False)
    torch.testing.assert_close(losses, measured.loss, rtol=RTOL, atol=0)


@pytest.mark.parametrize("tokens", [1, 40, 10_000], ids=["one example", "some", "all at once"])
def test_mean_gradient_equals_the_loops_mean_in_any_chunks(engine, make_model, make_adapters, make_batch, tokens):
    model, adapters, _ = make_adapters(make_model())
    batch = make_batch(LENGTHS, PROMPTS, members=3)
    measured = engine(model, tokens).measure(adapters, batch, with_mean_gradient=True)
    for member, rows in enumerate(twin(model, adapters, batch, LENGTHS)):
        for name in adapters:
            expected = torch.stack([gradient[name] for _, gradient in rows]).mean(0)
            torch.testing.assert_close(measured.mean_gradient[name][member], expected, rtol=RTOL, atol=1e-14)


def test_a_norm_does_not_depend_on_the_batch_it_is_in(engine, make_model, make_adapters, make_batch):
    model, adapters, _ = make_adapters(make_model())
    batch = make_batch(LENGTHS, PROMPTS)
    together = engine(model).measure(adapters, batch, with_mean_gradient=False).grad_norm
    for row in range(len(LENGTHS)):
        alone = Batch(batch.input_ids[row : row + 1], batch.labels[row : row + 1], batch.example_id[row : row + 1])
        single = engine(model).measure(adapters, alone, with_mean_gradient=False).grad_norm
        torch.testing.assert_close(together[:, row : row + 1], single, rtol=RTOL, atol=0)


def test_the_backbone_is_left_as_it_was(engine, make_model, make_adapters, make_batch):
    model, adapters, _ = make_adapters(make_model())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    engine(model).measure(adapters, make_batch(LENGTHS, PROMPTS), with_mean_gradient=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} was changed by measuring"


def test_chunks_must_hold_a_token(engine, make_model, make_adapters):
    model, _, _ = make_adapters(make_model())
    with pytest.raises(UserError, match="chunk_tokens must be positive, got 0"):
        engine(model, 0)
