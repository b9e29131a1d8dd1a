"""How much is computed at once: chosen by trying, taken back when memory runs out, without a trace in the results."""

import pytest
import torch

from gradfiltering.ensembles.batch_settings import BatchSettings
from gradfiltering.errors import UserError
from gradfiltering.gradients import memory
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.gradients.vmap import VmapEngine
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
    """The chunk that is chosen holds no more at its peak than half of what is free."""
    model, adapters, _ = make_adapters(make_model())
    engine = FusedEngine(model, ResponseNLL(), 1)
    engine.to(CPU)
    monkeypatch.setattr(memory, "free_memory", lambda device: 8 << 20)
    chosen = memory.find_fitting_tokens(engine, adapters, 30, CPU)
    assert 30 <= chosen < memory.MOST_TOKENS["cpu"]
    assert live_peak(engine, adapters, chosen) <= 4 << 20


def live_peak(engine, adapters, tokens):
    """Bytes that a chunk of rows of 30 tokens holds at most."""
    engine.chunk_tokens = tokens
    rows = max(1, tokens // (30 * member_count(adapters)))
    with memory.LiveBytes() as live_bytes:
        engine.measure(adapters, memory.trial_batch(rows, 30), with_mean_gradient=True)
    return live_bytes.peak


@pytest.mark.parametrize(("limit", "least"), [(1 << 20, 1), (4 << 20, 200)])
def test_a_limit_bounds_the_chunk(make_model, make_adapters, limit, least):
    model, adapters, _ = make_adapters(make_model())
    engine = FusedEngine(model, ResponseNLL(), 1)
    engine.to(CPU)
    chosen = memory.find_fitting_tokens(engine, adapters, 30, CPU, limit)
    assert least <= chosen < memory.MOST_TOKENS["cpu"] and live_peak(engine, adapters, chosen) <= limit


def test_a_limit_that_one_row_exceeds_is_an_error(make_model, make_adapters):
    model, adapters, _ = make_adapters(make_model())
    engine = FusedEngine(model, ResponseNLL(), 1)
    engine.to(CPU)
    with pytest.raises(UserError, match=r"one row of 30 tokens.*the limit is 0.00 GiB.*fewer tokens"):
        memory.find_fitting_tokens(engine, adapters, 30, CPU, 1000)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("engine_class", [FusedEngine, VmapEngine])
def test_planned_bytes_of_a_chunk_are_those_that_live(make_model, make_adapters, architecture, engine_class):
    model, adapters, _ = make_adapters(make_model(architecture, torch.float32))
    engine = engine_class(model, ResponseNLL(), 1)
    engine.to(CPU)
    chunk_memory = memory.measure_chunk_memory(engine, adapters, 30)
    for rows in (1, 4, 40):
        tokens = member_count(adapters) * rows * 30
        planned = chunk_memory.peak(tokens, 30, member_count(adapters))
        assert 1 / 1.3 < planned / live_peak(engine, adapters, tokens) < 1.3


def test_live_bytes_count_a_storage_once_until_it_is_freed():
    weights = torch.zeros(1000)
    with memory.LiveBytes() as live_bytes:
        first = torch.ones(250)  # 1000 bytes
        view = first.view(10, 25)
        weights.add_(1)
        assert live_bytes.peak == 1000
        del first, view
        second = weights[:500] * 2  # 2000 bytes; what existed before does not count
    assert live_bytes.peak == 2000 and len(second) == 500


@pytest.mark.parametrize(("limit", "expected"), [("8GB", 8 * 10**9), ("512MiB", 512 << 20), (1024, 1024), (None, None)])
def test_a_memory_limit_is_bytes_or_has_a_unit(limit, expected):
    assert BatchSettings(memory_limit=limit).memory_limit_bytes == expected


@pytest.mark.parametrize("limit", ["much", "0", "-3GB", "nan"])
def test_a_memory_limit_that_is_no_amount_is_refused(limit):
    with pytest.raises(UserError, match="is no amount of memory; give bytes, or a number with a unit such as 8GB"):
        BatchSettings(memory_limit=limit)


@pytest.mark.parametrize("tokens", [0, -5, "most"])
def test_tokens_that_are_no_number_are_refused(tokens):
    with pytest.raises(UserError, match="tokens must be a positive whole number or auto"):
        BatchSettings(tokens, 0)
