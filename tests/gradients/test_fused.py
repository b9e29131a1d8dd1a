"""The fused engine beyond what every engine must do: any shape, any head, narrow types, what it keeps."""

from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

from gradfiltering.data.batches import IGNORED
from gradfiltering.errors import UserError
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.gradients.vmap import VmapEngine
from gradfiltering.models import causal_model
from gradfiltering.models.causal_model import head_token_losses, split_model, token_nll
from gradfiltering.models.lora import LoraSettings
from gradfiltering.models.objectives import ResponseNLL
from tests.reference.gradients import loop_gradients, norm
from tests.support.operation_counter import OperationCounter
from tests.support.small_models import FixedLogits

RTOL = 1e-9
# Modules of the two-layer test model: attention only, MLP only, everything, and the upper layer only, so that the
# layers below the first adapter take part in no backward pass.
TARGETS = {
    "gpt2": [["c_attn"], ["c_fc", "mlp.c_proj"], "all-linear", ["h.1.attn.c_attn", "h.1.mlp.c_fc"]],  # with bias
    "llama": [["q_proj"], ["up_proj", "down_proj"], "all-linear", ["1.self_attn.v_proj", "1.mlp.gate_proj"]],  # none
}


def fused(model, tokens=10_000, objective=None, **options):
    engine = FusedEngine(model, objective or ResponseNLL(), tokens, **options)
    engine.to(torch.device("cpu"))
    return engine


def expected_rows(model, adapters, batch, lengths):
    """[M][B] (loss, gradient) by the loop, each row without its padding."""
    members = next(iter(adapters.values())).shape[0]
    own = lambda member: {name: value[member] for name, value in adapters.items()}  # noqa: E731
    ids, labels = (t if t.dim() == 3 else t.expand(members, *t.shape) for t in (batch.input_ids, batch.labels))
    return [
        [loop_gradients(model, own(m), ids[m, r, :n], labels[m, r, :n]) for r, n in enumerate(lengths)]
        for m in range(members)
    ]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_equals_the_loop_for_any_shape(make_model, make_adapters, make_batch, data):
    """Ranks, target layers, padding, members, responses of one token, own or shared rows, bias, any chunks."""
    lengths = data.draw(st.lists(st.integers(2, 14), min_size=1, max_size=5), "lengths")
    prompts = [data.draw(st.integers(1, length - 1), "prompt") for length in lengths]
    members = data.draw(st.integers(1, 4), "members")
    shared = data.draw(st.booleans(), "shared rows")
    pad_to = data.draw(st.integers(max(lengths), 20), "padded to")
    tokens = data.draw(st.sampled_from([1, 25, 60, 10_000]), "tokens at once")
    architecture = data.draw(st.sampled_from(list(TARGETS)), "architecture")
    rank, targets = data.draw(st.integers(1, 6), "rank"), data.draw(st.sampled_from(TARGETS[architecture]), "targets")
    model, adapters, _ = make_adapters(make_model(architecture), range(members), targets, rank)
    batch = make_batch(lengths, prompts, None if shared else members, pad_to=pad_to)
    measured = fused(model, tokens).measure(adapters, batch, with_mean_gradient=True)
    rows = expected_rows(model, adapters, batch, lengths)
    for quantity, of in ((measured.grad_norm, lambda row: norm(row[1])), (measured.loss, lambda row: row[0])):
        expected = torch.tensor([[of(row) for row in own] for own in rows], dtype=torch.float64)
        torch.testing.assert_close(quantity, expected, rtol=RTOL, atol=0)
    for name in adapters:
        expected = torch.stack([torch.stack([gradient[name] for _, gradient in own]).mean(0) for own in rows])
        torch.testing.assert_close(measured.mean_gradient[name], expected, rtol=RTOL, atol=1e-13)


def largest_token_loss(model, batch):
    """An objective that is no weighted sum of token losses."""
    return model.token_losses(batch.input_ids, batch.labels).amax(1)


def test_the_objective_is_replaceable(make_model, make_adapters, make_batch):
    model, adapters, _ = make_adapters(make_model())
    batch = make_batch([12, 5, 9], [4, 3, 2])
    found = fused(model, objective=largest_token_loss).measure(adapters, batch, with_mean_gradient=False)
    expected = VmapEngine(model, largest_token_loss, 10_000).measure(adapters, batch, with_mean_gradient=False)
    torch.testing.assert_close(found.loss, expected.loss, rtol=RTOL, atol=0)
    torch.testing.assert_close(found.grad_norm, expected.grad_norm, rtol=RTOL, atol=0)


def test_a_head_that_does_more_than_multiply_is_left_whole(make_adapters, make_batch):
    config = Gemma2Config(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, sliding_window=4, final_logit_softcapping=3.0, attn_logit_softcapping=1.0,
        max_position_embeddings=32, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model, adapters, _ = make_adapters(Gemma2ForCausalLM(config).double().eval().requires_grad_(False))
    engine = fused(model)
    assert split_model(model).head_weight is None
    batch = make_batch([12, 9], [4, 2])
    found = engine.measure(adapters, batch, with_mean_gradient=False)
    expected = VmapEngine(model, ResponseNLL(), 10_000).measure(adapters, batch, with_mean_gradient=False)
    # transformers takes some of Gemma's norms and softmaxes in float32 whatever the model's type
    torch.testing.assert_close(found.grad_norm, expected.grad_norm, rtol=1e-5, atol=0)


def test_an_adapted_head_is_measured_as_well(make_model, make_batch):
    settings_ = LoraSettings(rank=2, alpha=4, target_modules=["c_attn", "lm_head"], init_b_std=0.1)
    model = settings_.attach(make_model())
    assert split_model(model).head_weight is None
    rng = torch.Generator().manual_seed(0)
    adapters = {
        name: torch.randn(2, *value.shape, generator=rng, dtype=torch.float64) * 0.1
        for name, value in model.named_parameters()
        if value.requires_grad
    }
    batch = make_batch([9, 6], [3, 2])
    found = fused(model).measure(adapters, batch, with_mean_gradient=False)
    rows = expected_rows(model, adapters, batch, [9, 6])
    expected = torch.tensor([[norm(gradient) for _, gradient in own] for own in rows], dtype=torch.float64)
    torch.testing.assert_close(found.grad_norm, expected, rtol=RTOL, atol=0)


def test_token_losses_equal_cross_entropy_and_so_does_their_gradient():
    torch.manual_seed(0)
    hidden = torch.randn(3, 7, 5, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(11, 5, dtype=torch.float64), torch.randn(11, dtype=torch.float64)
    labels = torch.randint(0, 11, (3, 7))
    labels[0, :4] = IGNORED
    plain = token_nll(hidden @ weight.t() + bias, labels)
    (expected,) = torch.autograd.grad(plain.sum(), hidden)
    losses = head_token_losses(hidden, labels, weight, bias)
    (found,) = torch.autograd.grad(losses.sum(), hidden)
    torch.testing.assert_close(losses, plain, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("with_bias", [True, False])
def test_tokens_added_to_the_vocabulary_and_counts_change_no_loss(monkeypatch, with_bias):
    torch.manual_seed(0)
    hidden = torch.randn(3, 7, 5, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(11, 5, dtype=torch.float64), torch.randn(11, dtype=torch.float64) if with_bias else None
    labels = torch.randint(0, 11, (3, 7))
    labels[0, :4] = labels[2, 5:] = IGNORED
    expected = head_token_losses(hidden, labels, weight, bias)
    monkeypatch.setitem(causal_model.ALIGNMENT, "cpu", 8)
    token_count = int((labels[:, 1:] != IGNORED).sum())
    found = head_token_losses(hidden, labels, weight, bias, token_count)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    found_gradient, expected_gradient = (torch.autograd.grad(losses.sum(), hidden)[0] for losses in (found, expected))
    torch.testing.assert_close(found_gradient, expected_gradient)


def test_a_count_is_used_for_the_labels_it_is_of_only(make_model, make_batch):
    batch = make_batch([12, 9], [4, 2])
    whole = split_model(make_model())
    counted = replace(whole, counted_labels=batch.labels, counted_tokens=int((batch.labels[:, 1:] != IGNORED).sum()))
    other_labels = batch.labels.clone()
    other_labels[0, 5:] = IGNORED
    for labels in (batch.labels, other_labels):
        expected = whole.token_losses(batch.input_ids, labels)
        torch.testing.assert_close(counted.token_losses(batch.input_ids, labels), expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_losses_that_go_nowhere_make_no_gradient_of_the_head(mode):
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(3, 7, 5), torch.randn(11, 5), torch.randint(0, 11, (3, 7))
    product = 2 * 3 * 6 * 5 * 11
    with OperationCounter() as counter:
        learned = head_token_losses(hidden.clone().requires_grad_(), labels, weight, None)
    assert counter.operations == 2 * product
    with mode(), OperationCounter() as counter:
        losses = head_token_losses(hidden, labels, weight, None)
    assert counter.operations == product
    torch.testing.assert_close(losses, learned.detach(), rtol=0, atol=0)


def test_a_large_shared_part_of_the_logits_costs_bf16_nothing(make_model, make_adapters, make_batch):
    """GPT-2's logits lie around -100, where bf16 steps by 0.5; the centred head takes that part off first."""
    exact = make_model(dtype=torch.float32)
    # the last norm gives a constant part, which every row of the output layer picks up
    exact.transformer.ln_f.bias.data.fill_(12.5)
    shifted = (exact.lm_head.weight - 0.5).bfloat16().float()  # rounding the weights themselves is another matter
    exact.lm_head.weight = nn.Parameter(shifted.detach(), requires_grad=False)
    batch = make_batch([12, 9, 14], [4, 2, 6])
    wide, adapters, _ = make_adapters(exact)
    expected = fused(wide).measure(adapters, batch, with_mean_gradient=False)
    narrow, _, _ = make_adapters(wide.unload().to(torch.bfloat16))
    logits = narrow(input_ids=batch.input_ids).logits
    assert logits.mean() < -90
    found = fused(narrow).measure(adapters, batch, with_mean_gradient=False)
    miss = lambda loss: (loss / expected.loss - 1).abs().max()  # noqa: E731
    assert miss(found.loss) < 0.1 * miss(ResponseNLL()(FixedLogits(logits), batch))


def test_bf16_backbone_keeps_float32_gradients_and_near_norms(make_model, make_adapters, make_batch):
    batch = make_batch([12, 9, 14], [4, 2, 6])
    wide, adapters, _ = make_adapters(make_model(dtype=torch.float32))
    expected = fused(wide).measure(adapters, batch, with_mean_gradient=True)
    narrow, _, _ = make_adapters(wide.unload().to(torch.bfloat16))
    found = fused(narrow).measure(adapters, batch, with_mean_gradient=True)
    assert found.grad_norm.dtype == found.loss.dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in found.mean_gradient.values())
    torch.testing.assert_close(found.grad_norm, expected.grad_norm, rtol=0.02, atol=0)


def test_float32_equals_the_float64_loop(make_model, make_adapters, make_batch):
    lengths = [12, 5, 9]
    batch = make_batch(lengths, [4, 3, 2])
    model, adapters, _ = make_adapters(make_model())
    rows = expected_rows(model, adapters, batch, lengths)
    expected = torch.tensor([[norm(gradient) for _, gradient in own] for own in rows])
    narrow, _, _ = make_adapters(model.unload().float())
    found = fused(narrow).measure({name: value.float() for name, value in adapters.items()}, batch, False)
    torch.testing.assert_close(found.grad_norm, expected, rtol=1e-4, atol=0)


def test_without_recording_the_training_gradient_is_the_same(make_model, make_adapters, make_batch):
    model, adapters, _ = make_adapters(make_model())
    batch = make_batch([9, 6], [3, 2], members=3)
    whole = fused(model).measure(adapters, batch, with_mean_gradient=True)
    bare = fused(model, record_statistics=False).measure(adapters, batch, with_mean_gradient=True)
    for name in adapters:
        assert torch.equal(whole.mean_gradient[name], bare.mean_gradient[name])


def test_a_layer_it_cannot_form_gradients_of_is_refused(make_model):
    settings_ = LoraSettings(rank=2, alpha=4, target_modules=["wte"], init_b_std=0.1)
    with pytest.raises(UserError, match=r"wte is a Embedding, and the fused engine knows layers that only multiply"):
        fused(settings_.attach(make_model()))


def test_parallel_attention_and_rotary_positions(make_adapters, make_batch):
    config = GPTNeoXConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model, adapters, _ = make_adapters(GPTNeoXForCausalLM(config).double().eval().requires_grad_(False))
    batch = make_batch([12, 9], [4, 2])
    found = fused(model).measure(adapters, batch, with_mean_gradient=False)
    rows = expected_rows(model, adapters, batch, [12, 9])
    expected = torch.tensor([[norm(gradient) for _, gradient in own] for own in rows], dtype=torch.float64)
    torch.testing.assert_close(found.grad_norm, expected, rtol=1e-5, atol=0)  # its softmax is float32
