"""The frozen prefix: adapters in upper layers only, with the layers below computed once, or never."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from gradfiltering.data.batches import Batch
from gradfiltering.gradients.dropout import Dropout
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.gradients.projection import Projection
from gradfiltering.gradients.vmap import VmapEngine
from gradfiltering.models.adapted_layers import find_layers
from gradfiltering.models.objectives import ResponseNLL
from tests.reference.gradients import loop_gradients, norm
from tests.support.architectures import NotSmallError, causal_architectures, compare_frozen_prefix, small_model

RTOL = 1e-9
LENGTHS, PROMPTS = [12, 5, 9, 7], [4, 4, 2, 3]
CPU = torch.device("cpu")
# Plain, rotary, windows, soft caps, projections around the layers, ALiBi, convolutions, parallel blocks, routing.
SAMPLE = [
    "gpt2", "llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "mistral", "phi3", "opt", "bloom", "falcon",
    "gpt_neo", "gpt_neox", "mixtral", "mamba",
]  # fmt: skip


def fused(model, tokens=10_000, objective=None):
    engine = FusedEngine(model, objective or ResponseNLL(), tokens)
    engine.to(CPU)
    return engine


def with_states(engine, batch, lengths=LENGTHS):
    """A batch with the states that the cache would hand out: the last token's in the place of padding."""
    sequences = batch.input_ids.flatten(0, -2)
    states = engine.compute_prefix_states(engine.prefix, sequences).view(*batch.input_ids.shape, -1)
    for row, length in enumerate(lengths):
        states[..., row, length:, :] = states[..., row, length - 1 : length, :]
    return replace(batch, prefix_states=states)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("members", [None, 3], ids=["shared rows", "rows per member"])
@pytest.mark.parametrize("tokens", [1, 40, 10_000])
@pytest.mark.parametrize("are_given", [True, False], ids=["states given", "states made"])
def test_equals_the_loop(make_model, make_adapters, make_batch, architecture, members, tokens, are_given):
    model, adapters, _ = make_adapters(make_model(architecture), layers=1)
    batch = make_batch(LENGTHS, PROMPTS, members, pad_to=15)
    engine = fused(model, tokens)
    assert engine.prefix is not None and engine.prefix.first_layer == 1
    measured = engine.measure(adapters, with_states(engine, batch) if are_given else batch, with_mean_gradient=True)
    losses_alone = engine.compute_losses(adapters, with_states(engine, batch) if are_given else batch)
    torch.testing.assert_close(losses_alone, measured.loss, rtol=RTOL, atol=0)
    own_rows = batch if members else batch.map_tensors(lambda tensor: tensor.expand(3, *tensor.shape))
    for member in range(3):
        own = {name: value[member] for name, value in adapters.items()}
        rows = [
            loop_gradients(model, own, own_rows.input_ids[member, row, :length], own_rows.labels[member, row, :length])
            for row, length in enumerate(LENGTHS)
        ]
        norms = torch.tensor([norm(gradient) for _, gradient in rows], dtype=torch.float64)
        losses = torch.tensor([loss for loss, _ in rows], dtype=torch.float64)
        torch.testing.assert_close(measured.grad_norm[member], norms, rtol=RTOL, atol=0)
        torch.testing.assert_close(measured.loss[member], losses, rtol=RTOL, atol=0)
        for name in adapters:
            mean = torch.stack([gradient[name] for _, gradient in rows]).mean(0)
            torch.testing.assert_close(measured.mean_gradient[name][member], mean, rtol=RTOL, atol=1e-14)


@pytest.mark.parametrize("model_type", SAMPLE)
def test_architectures_go_on_from_states_as_the_loop_does(model_type):
    comparison = compare_frozen_prefix(model_type)
    assert not comparison.refusal
    assert comparison.difference < RTOL


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(set(causal_architectures()) - set(SAMPLE)))
def test_every_architecture_equals_the_loop_or_says_why_not(model_type):
    try:
        comparison = compare_frozen_prefix(model_type)
    except NotSmallError as error:
        pytest.skip(str(error))
    assert comparison.difference < RTOL or comparison.refusal


def test_rows_shared_by_members_go_through_frozen_layers_once(make_model, make_adapters, make_batch):
    model, adapters, _ = make_adapters(make_model(), layers="last_1")
    engine = fused(model)
    rows_seen = {0: 0, 1: 0}
    for index, layer in enumerate(find_layers(model.get_base_model()).layers):
        layer.attn.register_forward_hook(
            lambda _, __, output, index=index: rows_seen.update({index: rows_seen[index] + len(output[0])})
        )
    batch = make_batch(LENGTHS, PROMPTS)
    engine.measure(adapters, batch, with_mean_gradient=False)
    assert rows_seen == {0: len(LENGTHS), 1: 3 * len(LENGTHS)}
    with_their_states = with_states(engine, batch)
    rows_seen.update({0: 0, 1: 0})
    engine.measure(adapters, with_their_states, with_mean_gradient=False)
    assert rows_seen == {0: 0, 1: 3 * len(LENGTHS)}


def test_no_gradient_is_computed_below_the_first_adapter(make_model, make_adapters, make_batch):
    model, adapters, _ = make_adapters(make_model("llama"), layers=[1])
    entering: list[bool] = []
    layers = find_layers(model.get_base_model()).layers
    layers[1].register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0].requires_grad))
    fused(model).measure(adapters, make_batch(LENGTHS, PROMPTS, members=3), with_mean_gradient=True)
    assert entering and not any(entering)


def test_the_model_is_whole_again_after_measuring(make_model, make_adapters, make_batch):
    model, adapters, _ = make_adapters(make_model("llama"), layers=1)
    batch = make_batch(LENGTHS, PROMPTS)
    expected = model(input_ids=batch.input_ids).logits
    fused(model).measure(adapters, batch, with_mean_gradient=True)
    assert torch.equal(model(input_ids=batch.input_ids).logits, expected)


@pytest.mark.parametrize("tokens", [45, 10_000])
def test_dropout_and_projections_are_those_of_all_layers(make_model, make_adapters, make_batch, tokens):
    model, adapters, _ = make_adapters(make_model("llama"), layers=0.5)
    batch, dropout = make_batch(LENGTHS, PROMPTS, ids=[3, 40, 41, 7]), Dropout(0.3, 0, (0, 1, 2), 2)
    reference = VmapEngine(model, ResponseNLL(), 10_000)
    reference.to(CPU)
    engine = fused(model, tokens)
    batch = with_states(engine, batch)
    for further in (None, dropout):
        found, expected = (
            one.measure(adapters, batch, True, {"sketch": Projection(16)}, further) for one in (engine, reference)
        )
        torch.testing.assert_close(found.statistics["sketch"], expected.statistics["sketch"], rtol=RTOL, atol=1e-12)
        torch.testing.assert_close(found.grad_norm, expected.grad_norm, rtol=RTOL, atol=0)


def test_bf16_norms_are_near_those_of_all_layers(make_model, make_adapters, make_batch):
    model, adapters, _ = make_adapters(make_model("llama", torch.bfloat16), layers=1)
    adapters = {name: value.float() for name, value in adapters.items()}
    batch = make_batch(LENGTHS, PROMPTS)
    engine = fused(model)
    assert engine.compute_prefix_states(engine.prefix, batch.input_ids).dtype == torch.bfloat16
    found = engine.measure(adapters, batch, with_mean_gradient=True)
    assert found.grad_norm.dtype == torch.float32
    engine.prefix = None
    expected = engine.measure(adapters, batch, with_mean_gradient=True)
    torch.testing.assert_close(found.grad_norm, expected.grad_norm, rtol=0.02, atol=0)


class _RemembersFirstLayer(nn.Module):
    """A layer that adds what the first layer of the model saw, as models with shared keys do."""

    def __init__(self, layer: nn.Module, memory: dict, index: int):
        super().__init__()
        self.layer, self.memory, self.index = layer, memory, index

    def forward(self, hidden_states, *arguments, **keywords):
        if self.index == 0:
            self.memory["first"] = hidden_states
        return self.layer(hidden_states + 0.5 * self.memory["first"], *arguments, **keywords)


def test_layers_that_reach_past_the_prefix_are_gone_through_whole(make_model, make_adapters, make_batch, caplog):
    plain, memory = make_model("llama"), {}
    for index, layer in enumerate(plain.model.layers):
        plain.model.layers[index] = _RemembersFirstLayer(layer, memory, index)
    model, adapters, _ = make_adapters(plain, layers=1)
    with caplog.at_level("INFO"):
        engine = fused(model)
    assert engine.prefix is None and "layers 0-0 are computed for each member: " in caplog.text
    batch = make_batch(LENGTHS, PROMPTS)
    found = engine.measure(adapters, batch, with_mean_gradient=False)
    for row, length in enumerate(LENGTHS):
        own = {name: value[2] for name, value in adapters.items()}
        _, gradient = loop_gradients(model, own, batch.input_ids[row, :length], batch.labels[row, :length])
        assert found.grad_norm[2, row].item() == pytest.approx(norm(gradient), rel=RTOL)


def test_windows_and_positions_stay_those_of_the_whole_row(make_adapters):
    """Rows four times as long as the window, by states against all layers."""
    model, adapters, _ = make_adapters(small_model("mistral"), layers=1)
    input_ids = torch.randint(1, 64, (3, 16), generator=torch.Generator().manual_seed(1))
    batch = Batch(input_ids, input_ids.clone(), torch.arange(3))
    engine = fused(model)
    found = engine.measure(adapters, with_states(engine, batch, [16] * 3), with_mean_gradient=False)
    assert engine.prefix is not None
    engine.prefix = None
    expected = engine.measure(adapters, batch, with_mean_gradient=False)
    torch.testing.assert_close(found.grad_norm, expected.grad_norm, rtol=RTOL, atol=0)
