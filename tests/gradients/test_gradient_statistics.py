"""Statistics kept of gradients that are thrown away."""

import pytest
import torch

from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.gradients.projection import Projection
from gradfiltering.gradients.vmap import VmapEngine
from gradfiltering.models.objectives import ResponseNLL
from tests.reference.gradients import loop_gradients

LENGTHS, PROMPTS = [12, 5, 9, 7], [4, 4, 2, 3]


def matrix(projection, shapes):
    """The projection of one member as an explicit matrix [P, K], by projecting unit vectors."""
    blocks = []
    for name, shape in shapes.items():
        size = torch.Size(shape).numel()
        blocks.append(projection(name, torch.eye(size, dtype=torch.float64).view(1, size, *shape))[0])
    return torch.cat(blocks)


@pytest.mark.parametrize("engine", [FusedEngine, VmapEngine])
@pytest.mark.parametrize("width", [7, 64])
def test_projections_equal_the_flat_gradient_times_the_matrix(make_model, make_adapters, make_batch, engine, width):
    model, adapters, _ = make_adapters(make_model())
    batch = make_batch(LENGTHS, PROMPTS)
    built = engine(model, ResponseNLL(), 40)  # several chunks
    found = built.measure(adapters, batch, False, {"projection": Projection(width, seed=3)}).statistics["projection"]
    dense = matrix(Projection(width, seed=3), {name: value.shape[1:] for name, value in adapters.items()})
    assert found.shape == (3, len(LENGTHS), width)
    for member in range(3):
        own = {name: value[member] for name, value in adapters.items()}
        for row, length in enumerate(LENGTHS):
            _, gradient = loop_gradients(model, own, batch.input_ids[row, :length], batch.labels[row, :length])
            flat = torch.cat([gradient[name].flatten() for name in adapters])
            torch.testing.assert_close(found[member, row], flat @ dense, rtol=1e-9, atol=1e-12)


def test_each_coordinate_goes_to_one_sum_and_sums_are_even():
    dense = matrix(Projection(32, seed=0), {"a": (5, 40), "b": (3, 17)})
    assert ((dense != 0).sum(1) == 1).all() and dense.abs().sum() == len(dense)
    counts = (dense[:200] != 0).sum(0)
    assert counts.max() - counts.min() <= 1


def test_inner_products_survive():
    """Over many seeds the mean is the true inner product, and the spread is that of a dense projection."""
    rng = torch.Generator().manual_seed(0)
    one = torch.randn(1, 1, 20, 30, generator=rng, dtype=torch.float64)
    other = 0.5 * one + torch.randn(1, 1, 20, 30, generator=rng, dtype=torch.float64)
    width, seeds = 64, 400
    found = []
    for seed in range(seeds):
        projection = Projection(width, seed)
        found.append((projection("w", one) * projection("w", other)).sum())
    true = (one * other).sum()
    spread = ((one.square().sum() * other.square().sum() + true.square()) / width).sqrt()
    found = torch.stack(found)
    assert abs(found.mean() - true) < 4 * spread / seeds**0.5, "the sketch is biased"
    assert 0.8 < found.std() / spread < 1.2


def test_equal_seeds_agree_and_others_do_not():
    gradient = torch.randn(1, 2, 6, 9)
    assert torch.equal(Projection(8, 1)("w", gradient), Projection(8, 1)("w", gradient))
    assert not torch.equal(Projection(8, 1)("w", gradient), Projection(8, 2)("w", gradient))
    assert not torch.equal(Projection(8, 1)("w", gradient), Projection(8, 1)("v", gradient))
