"""The fused engine on a GPU; run with `make gpu`."""

import pytest
import torch
from scipy.stats import spearmanr

from gradfiltering.data.batches import IGNORED, Batch
from gradfiltering.gradients.attention import SDPA, set_attention
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.models.objectives import ResponseNLL
from tests.reference.gradients import loop_gradients, norm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
LENGTHS, PROMPTS = [12, 5, 9, 7], [4, 4, 2, 3]


def on_gpu(model, adapters, batch, dtype):
    engine = FusedEngine(model.to(dtype), ResponseNLL(), 10_000)
    engine.to(torch.device("cuda"))
    there = {name: value.to("cuda", torch.float32) for name, value in adapters.items()}
    moved = Batch(batch.input_ids.cuda(), batch.labels.cuda(), batch.example_id)
    return engine.measure(there, moved, with_mean_gradient=True)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_float32_on_a_gpu_equals_the_float64_loop(make_model, make_adapters, make_batch, architecture):
    model, adapters, _ = make_adapters(make_model(architecture))
    batch = make_batch(LENGTHS, PROMPTS)
    expected = [
        [
            norm(loop_gradients(model, own, batch.input_ids[row, :n], batch.labels[row, :n])[1])
            for row, n in enumerate(LENGTHS)
        ]
        for own in ({name: value[member] for name, value in adapters.items()} for member in range(3))
    ]
    found = on_gpu(model, adapters, batch, torch.float32)
    torch.testing.assert_close(found.grad_norm.cpu(), torch.tensor(expected), rtol=1e-4, atol=0)


def test_bf16_on_a_gpu_ranks_rows_as_float32_does(make_model, make_adapters, make_batch):
    lengths = [4 + row % 20 for row in range(64)]
    batch = make_batch(lengths, [1 + row % 3 for row in range(64)])
    model, adapters, _ = make_adapters(make_model())
    wide = on_gpu(model, adapters, batch, torch.float32).grad_norm.cpu()
    narrow = on_gpu(model, adapters, batch, torch.bfloat16).grad_norm.cpu()
    for one, other in zip(wide, narrow, strict=True):
        assert spearmanr(one, other)[0] > 0.99


def make_engine(model, is_recording=True):
    set_attention(model.get_base_model(), SDPA)  # eager attention copies its mask's numbers from the CPU
    engine = FusedEngine(model.float(), ResponseNLL(), 10_000)
    engine.to(torch.device("cuda"))
    if not is_recording:
        engine._recorded_bodies.refusal = "compared with"
    return engine


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("members", [None, 3], ids=["shared rows", "rows per member"])
@pytest.mark.parametrize("layers", ["all", 1], ids=["all layers", "frozen prefix"])
@pytest.mark.parametrize("with_mean_gradient", [True, False])
def test_recorded_passes_compute_what_single_operations_do(
    make_model, make_adapters, make_batch, architecture, members, layers, with_mean_gradient
):
    model, adapters, _ = make_adapters(make_model(architecture), layers=layers)
    engine = make_engine(model)
    rounds = []
    for round_number in range(4):  # two shapes in turns, other rows and adapters each time
        rows = make_batch(
            LENGTHS if round_number % 2 else [15, 14, 13], PROMPTS if round_number % 2 else [2, 5, 9], members
        )
        shifted = (rows.input_ids + round_number) % 60
        batch = Batch(shifted, torch.where(rows.labels == IGNORED, IGNORED, shifted), rows.example_id)
        scaled = {name: (value * (1 + round_number)).to("cuda", torch.float32) for name, value in adapters.items()}
        rounds.append((scaled, batch.to(torch.device("cuda"))))
    found = [engine.measure(*one_round, with_mean_gradient) for one_round in [*rounds, *rounds]][4:]
    assert not engine._recorded_bodies.refusal
    assert sum(body is not None for body in engine._recorded_bodies._bodies.values()) == 2
    plain_engine = make_engine(model, is_recording=False)
    for one_round, measured in zip(rounds, found, strict=True):
        expected = plain_engine.measure(*one_round, with_mean_gradient)
        torch.testing.assert_close(measured.loss, expected.loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(measured.grad_norm, expected.grad_norm, rtol=1e-4, atol=1e-7)
        assert (measured.mean_gradient is None) == (expected.mean_gradient is None)
        for name, gradient in (expected.mean_gradient or {}).items():
            torch.testing.assert_close(measured.mean_gradient[name], gradient, rtol=1e-3, atol=1e-6)


def test_a_step_waits_for_nothing(make_model, make_adapters, make_batch):
    model, adapters, _ = make_adapters(make_model())
    engine = make_engine(model)
    there = {name: value.to("cuda", torch.float32) for name, value in adapters.items()}
    batch = make_batch(LENGTHS, PROMPTS, 3).to(torch.device("cuda"))
    for _ in range(3):
        engine.measure(there, batch, with_mean_gradient=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine.measure(there, batch, with_mean_gradient=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_of_recorded_passes_is_given_back_where_it_runs_out(make_model, make_adapters, make_batch):
    model, adapters, _ = make_adapters(make_model())
    engine = make_engine(model)
    there = {name: value.to("cuda", torch.float32) for name, value in adapters.items()}
    batch = make_batch(LENGTHS, PROMPTS, 3).to(torch.device("cuda"))
    before = [engine.measure(there, batch, with_mean_gradient=True) for _ in range(3)][-1]
    engine.release_memory()
    assert not engine._recorded_bodies._bodies
    after = [engine.measure(there, batch, with_mean_gradient=True) for _ in range(3)][-1]
    torch.testing.assert_close(after.grad_norm, before.grad_norm)
