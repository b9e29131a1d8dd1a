"""Every kind of block, layer and adapter placement against the loop twin, in float64."""

import numpy as np
import pytest
import torch
from transformers.pytorch_utils import Conv1D

from gradfiltering.data.batches import IGNORED, Batch
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.gradients.vmap import VmapEngine
from gradfiltering.models.objectives import ResponseNLL
from tests.reference.gradients import loop_gradients, norm

RTOL = 1e-9
LENGTHS, PROMPTS = [12, 5, 9, 7, 3], [4, 4, 2, 3, 1]  # the second row has a response of one token

# Architecture, what is adapted, the adapted modules' names, and the kind of layer they are.
CASES = {
    "gpt2 attention": ("gpt2", ["attn.c_attn", "attn.c_proj"], {"c_attn", "c_proj"}, Conv1D),
    "gpt2 mlp": ("gpt2", ["mlp.c_fc", "mlp.c_proj"], {"c_fc", "c_proj"}, Conv1D),
    "gpt2 all": ("gpt2", "all-linear", {"c_attn", "c_proj", "c_fc"}, Conv1D),
    "llama attention": (
        "llama", ["q_proj", "k_proj", "v_proj", "o_proj"], {"q_proj", "k_proj", "v_proj", "o_proj"}, torch.nn.Linear,
    ),
    "llama mlp": (
        "llama", ["gate_proj", "up_proj", "down_proj"], {"gate_proj", "up_proj", "down_proj"}, torch.nn.Linear,
    ),
    "llama all": (
        "llama", "all-linear",
        {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}, torch.nn.Linear,
    ),
}  # fmt: skip


@pytest.fixture(params=CASES, scope="module")
def case(request):
    return CASES[request.param]


@pytest.fixture(params=[FusedEngine, VmapEngine], ids=["fused", "vmap"])
def measure(request):
    def run(model, adapters, batch, tokens=10_000, with_mean_gradient=False):
        engine = request.param(model, ResponseNLL(), tokens)
        engine.to(torch.device("cpu"))
        return engine.measure(adapters, batch, with_mean_gradient)

    return run


@pytest.fixture
def adapted(case, make_model, make_adapters):
    architecture, targets, _, _ = case
    model, adapters, _ = make_adapters(make_model(architecture), targets=targets)
    return model, adapters


def by_loop(model, adapters, batch):
    """[M][B] (loss, gradient) of each row without its padding."""
    return [
        [
            loop_gradients(
                model, {name: value[member] for name, value in adapters.items()}, batch.input_ids[row, :n],
                batch.labels[row, :n],
            )
            for row, n in enumerate(LENGTHS)
        ]
        for member in range(3)
    ]  # fmt: skip


def test_the_case_adapts_the_layers_it_names(case, adapted):
    _, targets, names, kind = case
    model, adapters = adapted
    places = {name.split(".lora_")[0] for name in adapters}
    assert {place.rpartition(".")[2] for place in places} == names
    assert all(isinstance(model.get_submodule(place).get_base_layer(), kind) for place in places)
    if isinstance(targets, list):
        assert all(any(place.endswith(target) for target in targets) for place in places)


def test_norms_losses_and_mean_gradient_equal_the_loop(measure, adapted, make_batch):
    model, adapters = adapted
    batch = make_batch(LENGTHS, PROMPTS)
    measured = measure(model, adapters, batch, with_mean_gradient=True)
    rows = by_loop(model, adapters, batch)
    for quantity, of in ((measured.grad_norm, lambda row: norm(row[1])), (measured.loss, lambda row: row[0])):
        expected = torch.tensor([[of(row) for row in own] for own in rows], dtype=torch.float64)
        torch.testing.assert_close(quantity, expected, rtol=RTOL, atol=0)
    for name in adapters:
        expected = torch.stack([torch.stack([gradient[name] for _, gradient in own]).mean(0) for own in rows])
        torch.testing.assert_close(measured.mean_gradient[name], expected, rtol=RTOL, atol=1e-14)


def test_norms_do_not_depend_on_company_padding_order_or_chunks(measure, adapted, make_batch):
    model, adapters = adapted
    batch = make_batch(LENGTHS, PROMPTS)
    norms = measure(model, adapters, batch).grad_norm
    order = np.random.default_rng(0).permutation(len(LENGTHS))
    shuffled = Batch(batch.input_ids[order], batch.labels[order], batch.example_id[order])
    wider = Batch(
        torch.nn.functional.pad(batch.input_ids, (0, 15), value=7),
        torch.nn.functional.pad(batch.labels, (0, 15), value=IGNORED),
        batch.example_id,
    )
    pair = Batch(batch.input_ids[1:3], batch.labels[1:3], batch.example_id[1:3])
    for found, expected, cause in (
        (measure(model, adapters, shuffled).grad_norm, norms[:, order], "the order of rows matters"),
        (measure(model, adapters, wider).grad_norm, norms, "padding reaches the norm"),
        (measure(model, adapters, pair).grad_norm, norms[:, 1:3], "neighbours in the batch reach the norm"),
        (measure(model, adapters, batch, tokens=1).grad_norm, norms, "micro-batches matter"),
        (measure(model, adapters, batch, tokens=30).grad_norm, norms, "micro-batches matter"),
    ):
        torch.testing.assert_close(found, expected, rtol=RTOL, atol=0, msg=lambda m, cause=cause: f"{cause}: {m}")


def test_a_member_does_not_depend_on_its_neighbours(measure, adapted, make_batch):
    model, adapters = adapted
    batch = make_batch(LENGTHS, PROMPTS)
    norms = measure(model, adapters, batch).grad_norm
    for members in ([1], [2, 0]):
        some = {name: value[members] for name, value in adapters.items()}
        torch.testing.assert_close(measure(model, some, batch).grad_norm, norms[members], rtol=RTOL, atol=0)
