"""Dropout on the adapters' inputs: in every engine what PEFT's own layers do, with masks that are the example's."""

import numpy as np
import pytest
import torch

from gradfiltering.data.batches import Batch
from gradfiltering.gradients.dropout import Dropout
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.gradients.projection import Projection
from gradfiltering.gradients.vmap import VmapEngine
from gradfiltering.models.objectives import ResponseNLL
from tests.reference.dropout import dropped_gradients
from tests.reference.gradients import LoopEngine, norm

RTOL = 1e-9
LENGTHS, PROMPTS, IDS = [12, 5, 9, 7], [4, 4, 2, 3], [3, 40, 41, 7]
DROPOUT = Dropout(0.3, seed=0, mask_streams=(0, 1, 2), epoch=2)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("members", [None, 3], ids=["shared rows", "rows per member"])
@pytest.mark.parametrize(("pad_to", "tokens"), [(12, 10_000), (20, 45)], ids=["all at once", "padded and cut"])
def test_equals_pefts_own_dropout(engine, make_model, make_adapters, make_batch, architecture, members, pad_to, tokens):
    model, adapters, _ = make_adapters(make_model(architecture))
    batch = make_batch(LENGTHS, PROMPTS, members, pad_to=pad_to, ids=IDS)
    rows = dropped_gradients(model, adapters, batch, LENGTHS, DROPOUT)
    found = engine(model, tokens).measure(adapters, batch, with_mean_gradient=True, dropout=DROPOUT)
    norms = torch.tensor([[norm(gradient) for _, gradient in line] for line in rows], dtype=torch.float64)
    losses = torch.tensor([[loss for loss, _ in line] for line in rows], dtype=torch.float64)
    torch.testing.assert_close(found.grad_norm, norms, rtol=RTOL, atol=0)
    torch.testing.assert_close(found.loss, losses, rtol=RTOL, atol=0)
    alone = engine(model, tokens).compute_losses(adapters, batch, DROPOUT)
    torch.testing.assert_close(alone, losses, rtol=RTOL, atol=0)
    for name in adapters:
        expected = torch.stack([torch.stack([gradient[name] for _, gradient in line]).mean(0) for line in rows])
        torch.testing.assert_close(found.mean_gradient[name], expected, rtol=RTOL, atol=1e-14)


def test_engines_project_the_same_gradients(make_model, make_adapters, make_batch):
    model, adapters, _ = make_adapters(make_model())
    batch = make_batch(LENGTHS, PROMPTS, ids=IDS)
    projected = {}
    for kind in (VmapEngine, LoopEngine, FusedEngine):
        built = kind(model, ResponseNLL(), 10_000)
        built.to(torch.device("cpu"))
        found = built.measure(adapters, batch, False, {"projection": Projection(32, seed=3)}, DROPOUT)
        projected[kind] = found.statistics["projection"]
    assert projected[FusedEngine].shape == (3, len(LENGTHS), 32)
    torch.testing.assert_close(projected[FusedEngine], projected[LoopEngine], rtol=RTOL, atol=1e-12)
    torch.testing.assert_close(projected[VmapEngine], projected[LoopEngine], rtol=RTOL, atol=1e-12)


def test_a_norm_depends_on_neither_batch_nor_neighbours(engine, make_model, make_adapters, make_batch):
    model, adapters, _ = make_adapters(make_model())
    batch = make_batch(LENGTHS, PROMPTS, ids=IDS)
    together = engine(model).measure(adapters, batch, False, dropout=DROPOUT).grad_norm
    for row in (2, 0):
        one = slice(row, row + 1)
        alone = Batch(batch.input_ids[one], batch.labels[one], batch.example_id[one])
        single = engine(model).measure(adapters, alone, False, dropout=DROPOUT).grad_norm
        torch.testing.assert_close(together[:, one], single, rtol=RTOL, atol=0)
    last = {name: value[2:] for name, value in adapters.items()}
    by_itself = engine(model).measure(last, batch, False, dropout=Dropout(0.3, 0, (2,), 2)).grad_norm
    torch.testing.assert_close(together[2:], by_itself, rtol=RTOL, atol=0)


def same_adapter(adapters, passes):
    return {name: value[:1].expand(passes, *value.shape[1:]) for name, value in adapters.items()}


def test_variance_over_passes_shrinks_with_the_probability(make_model, make_adapters, make_batch):
    """Proportionally: of a small p, halving it halves the variance of a mask's factors, p/(1 - p)."""
    model, adapters, _ = make_adapters(make_model())
    batch, passes = make_batch(LENGTHS, PROMPTS, ids=IDS), 64
    built, stacked = FusedEngine(model, ResponseNLL(), 10_000), same_adapter(adapters, passes)
    built.to(torch.device("cpu"))
    still = built.measure({name: value[:1] for name, value in adapters.items()}, batch, False).grad_norm
    variance, shift = {}, {}
    for p in (0.2, 0.05, 0.0125, 0.0):
        found = built.measure(stacked, batch, False, dropout=Dropout(p, 0, tuple(range(passes)), 1)).grad_norm
        variance[p] = float((found.var(0) / still[0].square()).mean())
        shift[p] = float((found.mean(0) / still[0] - 1).abs().max())
    assert variance[0.2] > variance[0.05] > variance[0.0125] > variance[0.0]
    assert variance[0.0] < 1e-24 and shift[0.0] < 1e-12, "p = 0 is not the norm without dropout"
    for large, small in ((0.2, 0.05), (0.05, 0.0125)):
        expected = (large / (1 - large)) / (small / (1 - small))
        assert 0.5 * expected < variance[large] / variance[small] < 2 * expected


def test_masks_are_of_seed_pass_epoch_and_example(make_model, make_adapters):
    _, adapters, _ = make_adapters(make_model())
    ids = np.array([[5, 9], [5, 9], [5, 9]])
    draw = lambda dropout, known=ids: dropout.draw_factors(known, slice(None), adapters)  # noqa: E731
    flat = lambda found: torch.cat([value.flatten(2) for value in found.values()], 2)  # noqa: E731
    mask = flat(draw(DROPOUT))
    assert set(np.unique(mask.numpy())) == {0.0, 1 / 0.7}
    assert torch.equal(mask, flat(draw(DROPOUT)))
    assert torch.equal(mask.flip(1), flat(draw(DROPOUT, ids[:, ::-1])))
    masks = [mask[0, 0], mask[1, 0], mask[0, 1], flat(draw(Dropout(0.3, 1, (0, 1, 2), 2)))[0, 0]]
    masks.append(flat(draw(Dropout(0.3, 0, (0, 1, 2), 1)))[0, 0])
    for one in range(len(masks)):
        for other in range(one):
            assert not torch.equal(masks[one], masks[other])


def test_dropped_share_is_p_and_factors_are_one_in_the_mean(make_model, make_adapters):
    _, adapters, _ = make_adapters(make_model())
    passes = tuple(range(3))
    factors = Dropout(0.3, 0, passes, 1).draw_factors(np.tile(np.arange(300), (3, 1)), slice(None), adapters)
    for name, value in factors.items():
        assert value.shape == (3, 300, adapters[name].shape[-1])
        sigma = (0.3 * 0.7 / value.numel()) ** 0.5
        assert abs(float((value == 0).double().mean()) - 0.3) < 5 * sigma
        assert abs(float(value.mean()) - 1) < 5 * sigma / 0.7
