"""States of frozen layers in a GPU's memory: here on the CPU, which computes and reads them the same way."""

import math
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from gradfiltering.data.batches import make_batch
from gradfiltering.data.dataset import Columns
from gradfiltering.data.encoder import Encoder
from gradfiltering.ensembles import device_states, trained_ensemble
from gradfiltering.ensembles.batch_settings import BatchSettings
from gradfiltering.ensembles.device_states import FREE_MEMORY_SHARE, DeviceStates, DeviceStateStore, keeps_on_device
from gradfiltering.ensembles.heldout_member import HeldoutSplit
from gradfiltering.evidence.heldout_member import measure_heldout_member
from gradfiltering.evidence.measurers import find_measurer
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.models.language_model import LanguageModel
from gradfiltering.models.lora import LoraSettings
from gradfiltering.models.objectives import ResponseNLL
from gradfiltering.requests import GradientLog
from gradfiltering.runs.cache import Cache
from gradfiltering.runs.gradient_log import GradientLogReader
from gradfiltering.synthetic.planted_defects import PlantedDefects
from gradfiltering.synthetic.pretraining import new_model
from gradfiltering.synthetic.task_source import TaskSource
from tests.support.pipeline import quiet_trainer
from tests.support.small_ensembles import SHAPE, measurement_context, small_ensemble

LORA = LoraSettings(rank=2, alpha=4, target_modules="all-linear", init_b_std=0.05, layers="last_1")
GPU = torch.device("cuda", 0)
GIGABYTE = 1 << 30
COLUMNS, NO_DEFECTS = Columns("instruction", "input", "output"), PlantedDefects(0, 0, 0, 0, 0, 0)


@pytest.fixture
def base_model(tokenizer):
    model = new_model({**SHAPE, "layers": 3}, tokenizer, 0).double().eval().requires_grad_(False)
    model.set_attn_implementation("eager")
    return LanguageModel(model, tokenizer, "test", "test", 0.0, True)


@pytest.fixture
def engine(base_model):
    engine = FusedEngine(LORA.attach(base_model.model), ResponseNLL(), 10_000)
    engine.to(torch.device("cpu"))
    return engine


@pytest.fixture
def examples(records, tokenizer, tmp_path):
    return Encoder(tokenizer, SHAPE["context"], Cache(tmp_path / "cache")).encode(records)


@pytest.fixture
def make_context(records, base_model, tokenizer, tmp_path):
    """Makes the context of an ensemble in the last of three layers."""

    def make(name, **changes):
        cache_folder = tmp_path / "caches" / name
        return measurement_context(
            records, base_model, tmp_path / name, cache_folder, quiet_trainer,
            encoder=Encoder(tokenizer, SHAPE["context"], Cache(cache_folder)),
            ensemble=small_ensemble(lora=LORA, **changes),
            batches=BatchSettings(600, 0),
        )  # fmt: skip

    return make


@pytest.fixture
def on_device(monkeypatch):
    """Takes the CPU's memory for that of a GPU with enough room."""
    monkeypatch.setattr(trained_ensemble, "keeps_on_device", lambda *_: True)


def test_a_row_is_read_as_it_is_computed_alone(engine, examples):
    states = DeviceStates.compute(engine, examples, pad_id=0, batch_tokens=600)
    rows = np.random.default_rng(0).permutation(len(examples))[:9]
    read = states.read(rows, 96)
    assert read.shape == (9, 96, SHAPE["width"]) and read.dtype == torch.float64 and states.is_new
    for row, row_states in zip(rows.tolist(), read, strict=True):
        input_ids = torch.tensor(examples.table[row]["input_ids"])[None]
        expected = engine.compute_prefix_states(engine.prefix, input_ids)[0]
        torch.testing.assert_close(row_states[: len(expected)], expected, rtol=1e-9, atol=1e-12)
        assert torch.equal(row_states[len(expected) :], row_states[len(expected) - 1].expand(96 - len(expected), -1))
    assert states.read(rows[:0], 1).shape == (0, 1, SHAPE["width"])


def test_a_part_of_the_rows_reads_the_states_of_all(engine, examples):
    whole = DeviceStates.compute(engine, examples, pad_id=0, batch_tokens=600)
    part = whole.find(whole.digests[[2, 3, 11, 20]])
    assert not part.is_new and part.states is whole.states
    assert torch.equal(part.read(np.arange(4), 96), whole.read(np.array([2, 3, 11, 20]), 96))
    unknown = whole.digests[:3] + np.uint64(1)
    assert whole.find(unknown) is None and not whole.find(whole.digests).is_new


def test_pairs_have_states_of_both_answers(engine, tokenizer, tmp_path):
    pairs = TaskSource(12, 0, None, "plain", COLUMNS, NO_DEFECTS, schema="preference").load(seed=0)
    examples = Encoder(tokenizer, SHAPE["context"], Cache(tmp_path / "pairs")).encode(pairs)
    states = DeviceStates.compute(engine, examples.sequences(), pad_id=0, batch_tokens=600)
    batch = make_batch(replace(examples, reference_nll=np.zeros((len(examples), 2))), np.array([5, 2]), 0, (2,), states)
    assert batch.prefix_states.shape == (*batch.input_ids.shape, SHAPE["width"])
    expected = engine.compute_prefix_states(engine.prefix, batch.input_ids.flatten(0, 1)).view_as(batch.prefix_states)
    is_token = torch.arange(batch.input_ids.shape[-1]) < torch.from_numpy(examples.sequence_lengths[[5, 2]])[..., None]
    torch.testing.assert_close(batch.prefix_states[is_token], expected[is_token], rtol=1e-9, atol=1e-12)


def test_a_store_keeps_models_and_layers_apart(engine, examples):
    store, kind = DeviceStateStore(), ("hash", 2, "torch.float64")
    part = examples.select(examples.example_ids[:3].tolist())
    assert store.find(kind, examples) is None
    store.add(kind, DeviceStates.compute(engine, part, pad_id=0, batch_tokens=600))
    assert store.find(kind, part) is not None and store.find(kind, examples) is None
    assert (
        store.find(("other", 2, "torch.float64"), part) is None
        and store.find(("hash", 1, "torch.float64"), part) is None
    )
    store.add(kind, DeviceStates.compute(engine, examples, pad_id=0, batch_tokens=600))
    assert store.find(kind, examples).positions.tolist() == list(range(len(examples)))
    store.clear()
    assert store.find(kind, part) is None


def test_clearing_a_store_frees_states_that_a_circle_refers_to(engine, examples):
    store, states = DeviceStateStore(), DeviceStates.compute(engine, examples.sequences(), 0, 1000)
    store.add(("model", 2, "float64"), states)
    states_reference = weakref.ref(states)
    circle = [states]
    circle.append(circle)
    del states, circle
    store.clear()
    assert states_reference() is None


def test_all_measurements_of_a_run_share_them(make_context, on_device, monkeypatch):
    computed = []
    compute = DeviceStates.compute
    monkeypatch.setattr(
        DeviceStates, "compute", lambda engine, rows, *rest: computed.append(len(rows)) or compute(engine, rows, *rest)
    )
    context = make_context("shared", m=1)
    find_measurer(GradientLog()).measure(GradientLog(), context)
    ids = context.examples.example_ids
    split = HeldoutSplit(*(context.examples.select(part.tolist()) for part in (ids[:14], ids[14:])))
    measure_heldout_member(context, split)
    assert computed == [len(context.examples), len(context.heldout)], "the extra member's rows are among all rows"


@pytest.mark.parametrize(("collect", "train_rows"), [("snapshot", None), ("online", None), ("snapshot", 40)])
def test_they_change_no_log_and_are_not_stored(make_context, tmp_path, on_device, monkeypatch, collect, train_rows):
    def measure(name):
        context = make_context(name, collect=collect, train_rows=train_rows)
        find_measurer(GradientLog()).measure(GradientLog(), context)
        return GradientLogReader(tmp_path / name / "gradient_log"), context.reports.ensemble.costs, context

    there, costs, context = measure("on device")
    assert not list((tmp_path / "caches" / "on device").glob("frozen_prefix/*"))
    assert costs.frozen_tokens == context.examples.tokens + context.heldout.tokens, "each row goes through them once"
    monkeypatch.undo()
    stored, stored_costs, _ = measure("stored")
    assert list((tmp_path / "caches" / "stored").glob("frozen_prefix/*/states-*.bin"))
    assert costs.frozen_tokens == stored_costs.frozen_tokens
    for epoch in (1, 2):
        np.testing.assert_allclose(there.epoch(epoch).grad_norm, stored.epoch(epoch).grad_norm, rtol=1e-6)
        np.testing.assert_allclose(there.epoch(epoch).loss, stored.epoch(epoch).loss, rtol=1e-6)


def test_they_are_kept_on_one_gpu_with_enough_room(engine, examples, monkeypatch):
    needed = examples.tokens * SHAPE["width"] * 8
    memory = {"free": math.ceil(needed / FREE_MEMORY_SHARE), "reserved": 0, "allocated": 0}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (memory["free"], GIGABYTE))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: memory["reserved"])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: memory["allocated"])

    def keeps(device=GPU, **changes):
        return keeps_on_device(engine.prefix, examples, device, replace(BatchSettings("auto", 0), **changes))

    assert keeps() and not keeps(torch.device("cpu"))
    assert not keeps(workers=1) and not keeps(prefix_limit=needed - 1) and keeps(prefix_limit=needed)
    memory["free"] -= 10
    assert not keeps()
    memory.update(reserved=20, allocated=10)  # memory that PyTorch holds and nothing uses is free, too
    assert keeps()
    monkeypatch.setattr(device_states, "world_size", lambda: 2)
    assert not keeps()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_on_a_gpu_reading_waits_for_nothing(engine, examples):
    expected = DeviceStates.compute(engine, examples, pad_id=0, batch_tokens=600)
    engine.to(GPU)
    states = DeviceStates.compute(engine, examples, pad_id=0, batch_tokens=600)
    rows = np.random.default_rng(1).permutation(len(examples))
    states.read(rows, 96)  # what is asked for the first time is waited for
    torch.cuda.set_sync_debug_mode("error")
    try:
        read = states.read(rows, 96)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert read.device == GPU
    torch.testing.assert_close(read.cpu(), expected.read(rows, 96), rtol=1e-6, atol=1e-9)
