"""Every engine gives the gradients of whole pairs under DPO that a loop over pairs and sequences gives."""

from dataclasses import replace

import pytest
import torch

from gradfiltering.data.batches import PreferenceBatch
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.gradients.vmap import VmapEngine
from gradfiltering.models.objectives import DirectPreference
from tests.reference.gradients import LoopEngine, norm
from tests.reference.preferences import base_log_probabilities, pair_gradients

RTOL = 1e-10
BETA = 0.3
LENGTHS = [[12, 7], [5, 12], [9, 9]]  # of the chosen and the rejected sequence
PROMPTS = [4, 2, 3]


@pytest.fixture
def make_pairs(make_batch):
    def make(model, members=None):
        """Three pairs; with `members`, each member has pairs of its own."""
        sides = [
            make_batch([lengths[side] for lengths in LENGTHS], PROMPTS, members=members, seed=side, pad_to=12)
            for side in (0, 1)
        ]
        input_ids, labels = (
            torch.stack([getattr(side, name) for side in sides], -2) for name in ("input_ids", "labels")
        )
        pairs = PreferenceBatch(input_ids, labels, sides[0].example_id, torch.zeros(*input_ids.shape[:-1]).double())
        flat = [pairs] if members is None else [pairs.map_tensors(lambda t, m=m: t[m]) for m in range(members)]
        references = torch.stack([-base_log_probabilities(model, rows) for rows in flat])
        lengths = torch.tensor(LENGTHS).max(1).values.expand(pairs.example_id.shape)
        return replace(pairs, reference_nll=references.view(pairs.reference_nll.shape), lengths=lengths)

    return make


def expected_measurements(model, adapters, pairs):
    """[M, B] losses and norms, and the mean gradient of each member."""
    losses, norms, means = [], [], []
    for member in range(3):
        adapter = {name: stacked[member] for name, stacked in adapters.items()}
        rows = pairs if pairs.example_id.dim() == 1 else pairs.map_tensors(lambda t, m=member: t[m])
        results = [
            pair_gradients(model, adapter, rows.input_ids[row], rows.labels[row], -rows.reference_nll[row], BETA)
            for row in range(3)
        ]
        losses.append([loss for loss, _ in results])
        norms.append([norm(gradient) for _, gradient in results])
        means.append({name: sum(gradient[name] for _, gradient in results) / 3 for name in adapters})
    return torch.tensor(losses, dtype=torch.float64), torch.tensor(norms, dtype=torch.float64), means


@pytest.mark.parametrize("chunk_tokens", [1, 60, 10_000])
@pytest.mark.parametrize(
    ("engine_type", "layers"),
    [(FusedEngine, "all"), (FusedEngine, 1), (VmapEngine, "all"), (LoopEngine, "all")],
    ids=["fused", "fused with frozen prefix", "vmap", "loop"],
)
@pytest.mark.parametrize("members", [None, 3], ids=["shared rows", "own rows"])
def test_gradients_of_pairs_equal_those_of_a_loop(
    make_model, make_adapters, make_pairs, engine_type, layers, members, chunk_tokens
):
    model, adapters, _ = make_adapters(make_model("llama"), layers=layers)
    pairs = make_pairs(model, members)
    losses, norms, means = expected_measurements(model, adapters, pairs)
    engine = engine_type(model, DirectPreference(BETA), chunk_tokens)
    engine.to(torch.device("cpu"))
    measured = engine.measure(adapters, pairs, with_mean_gradient=True)
    torch.testing.assert_close(measured.loss, losses, rtol=RTOL, atol=0)
    torch.testing.assert_close(measured.grad_norm, norms, rtol=RTOL, atol=0)
    assert (engine.prefix is not None) == (engine_type is FusedEngine and layers == 1)
    for member, mean in enumerate(means):
        for name, expected in mean.items():
            torch.testing.assert_close(measured.mean_gradient[name][member], expected, rtol=RTOL, atol=1e-14)


def test_states_that_are_given_take_the_place_of_frozen_layers(make_model, make_adapters, make_pairs):
    model, adapters, _ = make_adapters(make_model("llama"), layers=1)
    pairs = make_pairs(model)
    engine = FusedEngine(model, DirectPreference(BETA), 10_000)
    engine.to(torch.device("cpu"))
    states = engine.compute_prefix_states(engine.prefix, pairs.input_ids.flatten(0, 1))
    given = engine.measure(adapters, replace(pairs, prefix_states=states.view(*pairs.input_ids.shape, -1)), True)
    computed = engine.measure(adapters, pairs, with_mean_gradient=True)
    torch.testing.assert_close(given.grad_norm, computed.grad_norm, rtol=RTOL, atol=0)
