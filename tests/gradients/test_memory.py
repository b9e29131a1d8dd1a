"""How much is computed at once: chosen by trying, taken back when memory runs out, without a trace in the results."""

import pytest
import torch

from gradfiltering.ensembles.batch_settings import BatchSettings
from gradfiltering.errors import UserError
from gradfiltering.gradients import memory
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.models.lora import member_count
from gradfiltering.models.objectives import ResponseNLL

CPU = torch.device("cpu")


class Small(FusedEngine):
    """An engine on a device that holds so many padded tokens and no more."""

    holds = 0

    def _measure_chunk(self, adapters, batch, accumulator):
        shared_by = member_count(adapters) if batch.example_id.dim() == 1 else 1
        tokens = batch.input_ids.numel() * shared_by
        if tokens > self.holds:
            raise torch.OutOfMemoryError(f"{tokens} tokens")
        return super()._measure_chunk(adapters, batch, accumulator)


def small(model, holds, tokens=10_000):
    engine = Small(model, ResponseNLL(), tokens)
    engine.holds = tokens
    engine.to(CPU)
    engine.holds = holds
    return engine


@pytest.mark.parametrize("holds", [40, 15])
def test_out_of_memory_halves_the_chunk_says_so_and_changes_nothing(
    make_model, make_adapters, make_batch, holds, caplog
):
    model, adapters, _ = make_adapters(make_model())
    batch = make_batch([12, 5, 9, 7], [4, 4, 2, 3], members=3)
    whole = FusedEngine(model, ResponseNLL(), 10_000)
    whole.to(CPU)
    expected = whole.measure(adapters, batch, with_mean_gradient=True)
    engine = small(model, holds)
    found = engine.measure(adapters, batch, with_mean_gradient=True)
    assert "out of memory: going on with" in caplog.text and "no result depends" in caplog.text
    assert engine.chunk_tokens < 2 * holds
    torch.testing.assert_close(found.grad_norm, expected.grad_norm, rtol=1e-12, atol=0)
    for name in adapters:
        torch.testing.assert_close(found.mean_gradient[name], expected.mean_gradient[name], rtol=1e-12, atol=1e-14)


def test_what_fits_nowhere_is_an_error_that_names_a_remedy(make_model, make_adapters, make_batch):
    model, adapters, _ = make_adapters(make_model())
    with pytest.raises(UserError, match=r"one row of 30 tokens.*fewer tokens"):
        memory.find_fitting_tokens(small(model, 20), adapters, 30, CPU)
    with pytest.raises(torch.OutOfMemoryError):
        small(model, 5).measure(adapters, make_batch([12], [4]), with_mean_gradient=False)


def test_auto_takes_what_was_seen_to_fit(make_model, make_adapters):
    model, adapters, _ = make_adapters(make_model())
    assert memory.find_fitting_tokens(small(model, 10**9), adapters, 30, CPU) == memory.MOST_TOKENS["cpu"]
    chosen = memory.find_fitting_tokens(small(model, 3000), adapters, 30, CPU)
    assert 1000 <= chosen <= 3000


def test_auto_stops_before_memory_is_gone(make_model, make_adapters, monkeypatch):
    """Each doubling takes as much memory as the batch; half of what is free is the limit."""
    model, adapters, _ = make_adapters(make_model())
    engine, seen = FusedEngine(model, ResponseNLL(), 1), []
    engine.to(CPU)
    monkeypatch.setattr(memory, "_free_memory", lambda device: 8000)
    monkeypatch.setattr(memory, "_used_memory", lambda device: max(seen, default=0))
    measure = engine.measure
    monkeypatch.setattr(engine, "measure", lambda *a, **k: (seen.append(engine.chunk_tokens), measure(*a, **k)))
    chosen = memory.find_fitting_tokens(engine, adapters, 30, CPU)
    assert chosen <= 4000 < 2 * chosen * 2


@pytest.mark.parametrize("tokens", [0, -5, "most"])
def test_tokens_that_are_no_number_are_refused(tokens):
    with pytest.raises(UserError, match="tokens must be a positive whole number or auto"):
        BatchSettings(tokens, 0)
