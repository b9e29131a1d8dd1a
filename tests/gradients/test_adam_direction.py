"""Directions of Adam, made and projected parameter by parameter, against `torch.optim.Adam` itself."""

import pytest
import torch

from gradfiltering.data.batches import Batch
from gradfiltering.errors import UserError
from gradfiltering.gradients.adam_direction import AdamProjection, adam_direction
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.gradients.projection import Projection
from gradfiltering.gradients.vmap import VmapEngine
from gradfiltering.models.objectives import ResponseNLL
from tests.reference import less as reference
from tests.reference.gradients import LoopEngine, loop_gradients

RTOL, ATOL = 1e-9, 1e-9  # float64; directions are of size 1
BETAS, EPS = (0.9, 0.999), 1e-8
LENGTHS, PROMPTS = [12, 5, 9, 7], [4, 4, 2, 3]
WIDTH = 32


def moments_of(adapters, size=1e-2):
    """Moments of one member as if in mid-training: about as large as gradients, some coordinates never touched."""
    rng = torch.Generator().manual_seed(5)
    first = {
        name: size * torch.randn(value.shape, generator=rng, dtype=value.dtype) for name, value in adapters.items()
    }
    second = {name: value.square() * 2 for name, value in first.items()}
    for of in (first, second):
        for value in of.values():
            value[..., 0] = 0
    return {"exp_avg": first, "exp_avg_sq": second}


def one_member(moments):
    return {kind: {name: value[0] for name, value in of.items()} for kind, of in moments.items()}


def measured(engine, adapters, batch, moments, tokens=10_000):
    statistic = AdamProjection(Projection(WIDTH, seed=3), moments, BETAS, EPS)
    return engine(tokens).measure(adapters, batch, False, {"adam": statistic}).statistics["adam"]


@pytest.fixture(params=[FusedEngine, VmapEngine, LoopEngine], ids=["fused", "vmap", "loop"])
def case(request, make_model, make_adapters, make_batch):
    """Engine, model, one member's adapters, and rows."""
    model, adapters, _ = make_adapters(make_model(), members=(2,))

    def engine(tokens):
        built = request.param(model, ResponseNLL(), tokens)
        built.to(torch.device("cpu"))
        return built

    return engine, model, adapters, make_batch(LENGTHS, PROMPTS)


def test_direction_is_what_adams_own_moments_give():
    """After some real steps, Adam is given one more gradient; its moments then make the direction."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(12, dtype=torch.float64))
    adam = torch.optim.Adam([weight], lr=1e-3, betas=BETAS, eps=EPS)
    for _ in range(5):
        weight.grad = torch.randn(12, dtype=torch.float64)
        adam.step()
    before = {name: value.clone() for name, value in adam.state[weight].items()}
    gradient = torch.randn(3, 12, dtype=torch.float64)
    found = adam_direction(gradient, before["exp_avg"], before["exp_avg_sq"], BETAS, EPS)
    for own, direction in zip(gradient, found, strict=True):
        adam.state[weight].update({name: value.clone() for name, value in before.items()})
        weight.grad = own.clone()
        adam.step()
        state = adam.state[weight]
        expected = state["exp_avg"] / torch.sqrt(state["exp_avg_sq"] + EPS)
        torch.testing.assert_close(direction, expected, rtol=RTOL, atol=0)


def test_projected_directions_equal_those_of_torchs_adam(case):
    engine, model, adapters, batch = case
    moments = moments_of(adapters)
    found = measured(engine, adapters, batch, moments)
    assert found.shape == (1, len(LENGTHS), WIDTH)
    dense = reference.matrix(Projection(WIDTH, seed=3), {name: value.shape[1:] for name, value in adapters.items()})
    own = {name: value[0] for name, value in adapters.items()}
    for row, length in enumerate(LENGTHS):
        _, gradient = loop_gradients(model, own, batch.input_ids[row, :length], batch.labels[row, :length])
        direction = reference.adam_direction(own, one_member(moments), 7, gradient, BETAS, EPS)
        torch.testing.assert_close(found[0, row], direction @ dense, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("tokens", [1, 40])
def test_chunks_and_neighbours_change_nothing(case, tokens):
    engine, _, adapters, batch = case
    moments = moments_of(adapters)
    together = measured(engine, adapters, batch, moments)
    torch.testing.assert_close(measured(engine, adapters, batch, moments, tokens), together, rtol=RTOL, atol=ATOL)
    for row in range(len(LENGTHS)):
        alone = Batch(*(value[row : row + 1] for value in (batch.input_ids, batch.labels, batch.example_id)))
        found = measured(engine, adapters, alone, moments)
        torch.testing.assert_close(found[:, 0], together[:, row], rtol=RTOL, atol=ATOL)


def test_a_large_second_moment_leaves_the_gradients_direction():
    """Large v drowns the example's share in it: the direction is parallel to what m and the gradient make."""
    gradient = torch.randn(2, 5, dtype=torch.float64)
    found = adam_direction(gradient, torch.zeros(5), torch.full((5,), 1e12, dtype=torch.float64), BETAS, EPS)
    cosines = torch.nn.functional.cosine_similarity(found, gradient)
    torch.testing.assert_close(cosines, torch.ones(2, dtype=torch.float64), rtol=1e-9, atol=0)


def test_narrow_gradients_are_widened():
    gradient = torch.full((1, 3), 1e-3, dtype=torch.bfloat16)
    found = adam_direction(gradient, torch.zeros(3), torch.zeros(3), BETAS, EPS)
    assert found.dtype == torch.float32
    expected = 0.1 * gradient.float() / torch.sqrt(0.001 * gradient.float() ** 2 + EPS)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_what_it_is_told_apart_by():
    plain = Projection(8, 1)
    assert AdamProjection(plain, {"exp_avg": {}, "exp_avg_sq": {}}, BETAS, EPS).identity != plain.identity
    assert plain.identity == {"width": 8, "seed": 1}, "projections that are in a store would not be found again"


def test_moments_are_those_of_one_trained_member(make_model, make_adapters, make_batch):
    model, adapters, _ = make_adapters(make_model())
    statistic = AdamProjection(Projection(WIDTH, 0), moments_of(adapters), BETAS, EPS)
    with pytest.raises(ValueError, match="gradients of 3 members"):
        FusedEngine(model, ResponseNLL(), 10_000).measure(
            adapters, make_batch(LENGTHS, PROMPTS), False, {"adam": statistic}
        )
    with pytest.raises(UserError, match="no moments before the first step"):
        AdamProjection(Projection(WIDTH, 0), {}, BETAS, EPS)
