"""States of frozen layers in the cache: made once, read by training and passes, and no result depends on them."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from gradfiltering.data.batches import MemberBatches
from gradfiltering.data.encoder import Encoder
from gradfiltering.data.length_buckets import LengthBuckets
from gradfiltering.ensembles import prefix_states
from gradfiltering.ensembles.batch_settings import BatchSettings
from gradfiltering.ensembles.dropout_ensemble import DropoutEnsemble
from gradfiltering.evidence.measurers import find_measurer
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.models.language_model import LanguageModel
from gradfiltering.models.lora import LoraSettings
from gradfiltering.models.objectives import ResponseNLL
from gradfiltering.requests import GradientLog
from gradfiltering.runs.cache import Cache
from gradfiltering.runs.gradient_log import GradientLogReader
from gradfiltering.synthetic.pretraining import new_model
from tests.support.interruption import KilledHere, Steps, counting
from tests.support.pipeline import quiet_trainer
from tests.support.small_ensembles import ROWS, SHAPE, assert_identical_logs, measurement_context, small_ensemble

LORA = LoraSettings(rank=2, alpha=4, target_modules="all-linear", init_b_std=0.05, layers="last_1")
LOG_RTOL = 1e-6  # the log is float32
CPU = torch.device("cpu")


def base_model(tokenizer, dtype=torch.float64, layers=3):
    model = new_model({**SHAPE, "layers": layers}, tokenizer, 0).to(dtype).eval().requires_grad_(False)
    model.set_attn_implementation("eager")
    return LanguageModel(model, tokenizer, "test", "test", 0.0, True)


@pytest.fixture
def measure(records, tokenizer, tmp_path):
    """Measures the gradient log of an ensemble in the last of three layers; `measure.costs` are those of the last."""

    def run(name, limit=1 << 30, cache=None, workers=0, trainer=quiet_trainer, model=None, lora=LORA, **changes):
        cache_folder = cache or tmp_path / "caches" / name
        context = measurement_context(
            records, model or base_model(tokenizer), tmp_path / name, cache_folder, trainer,
            encoder=Encoder(tokenizer, SHAPE["context"], Cache(cache_folder)),
            ensemble=changes.pop("ensemble", None) or small_ensemble(lora=lora, **changes),
            batches=BatchSettings(600, workers, prefix_limit=limit),
        )  # fmt: skip
        run.costs, run.examples = context.reports.ensemble.costs, context.examples
        find_measurer(GradientLog()).measure(GradientLog(), context)
        return GradientLogReader(tmp_path / name / "gradient_log")

    return run


def kept(cache):
    return sorted(cache.glob("frozen_prefix/*/artifact.json"))


def assert_same_logs(first, second):
    for epoch in (1, 2):
        np.testing.assert_allclose(first.epoch(epoch).grad_norm, second.epoch(epoch).grad_norm, rtol=LOG_RTOL)
        np.testing.assert_allclose(first.epoch(epoch).loss, second.epoch(epoch).loss, rtol=LOG_RTOL)


@pytest.mark.parametrize("collect", ["snapshot", pytest.param("online", marks=pytest.mark.slow)])
def test_kept_states_change_no_norm_and_no_loss(measure, tmp_path, collect):
    with_states = measure("kept", collect=collect)
    assert len(kept(tmp_path / "caches" / "kept")) == 2  # rows, and held-out rows
    assert measure.costs.frozen_tokens > 0
    once = measure.costs.frozen_tokens
    without = measure("anew", limit=0, collect=collect)
    assert not kept(tmp_path / "caches" / "anew")
    assert_same_logs(with_states, without)
    trained_tokens = 3 * 2 * measure.examples.tokens
    assert measure.costs.frozen_tokens >= trained_tokens > 3 * once


@pytest.mark.slow
def test_dropout_passes_read_kept_states(measure):
    settings = vars(small_ensemble(lora=LORA))
    ensemble = DropoutEnsemble(**settings, dropout=0.3, train_dropout=0.1)
    assert_same_logs(measure("kept", ensemble=ensemble), measure("anew", limit=0, ensemble=ensemble))


@pytest.mark.slow
def test_worker_processes_read_kept_states(measure):
    assert_identical_logs(measure("here"), measure("workers", workers=2), (1, 2))


def test_other_members_and_learning_rates_reuse_the_states(measure, tmp_path, capsys):
    cache = tmp_path / "shared"
    measure("first", cache=cache, m=2)
    assert capsys.readouterr().out.count("frozen layers 0-1 of") == 2
    times = [path.stat().st_mtime_ns for path in kept(cache)]
    measure("other", cache=cache, lr=0.02, m=1)
    assert measure.costs.trained == 2 and measure.costs.frozen_tokens == 0
    measure("wider", cache=cache, m=1, lora=replace(LORA, rank=3))
    assert "frozen layers" not in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in kept(cache)] == times
    measure("two layers", cache=cache, m=1, lora=replace(LORA, layers=2))
    assert len(kept(cache)) == 4 and "frozen layers 0-0 of" in capsys.readouterr().out


def test_size_is_announced_and_what_is_too_large_is_not_kept(measure, tmp_path, capsys):
    measure("kept", m=1)
    byte_count = measure.examples.tokens * SHAPE["width"] * 8
    assert f"frozen layers 0-1 of {ROWS} rows: {byte_count / 1e3:.0f} kB\n" in capsys.readouterr().out
    shards = list((tmp_path / "caches" / "kept").glob("frozen_prefix/*/states-*.bin"))
    assert byte_count in [shard.stat().st_size for shard in shards], "padding is stored, or tokens are missing"
    measure("limited", limit="10kB", m=1)
    told = capsys.readouterr().out
    assert "more than the 10 kB that may be kept; they are computed anew for each batch" in told
    assert not list((tmp_path / "caches" / "limited").glob("frozen_prefix/*/states-*.bin"))


def test_a_full_disk_is_foreseen(measure, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prefix_states.shutil, "disk_usage", lambda folder: type("", (), {"free": 1000}))
    measure("full", m=1)
    assert "with 1 kB free in" in capsys.readouterr().out and not kept(tmp_path / "caches" / "full")


def test_all_layers_keep_the_keys_they_had(measure, tmp_path):
    measure("all", m=1, lora=replace(LORA, layers="all"))
    assert not kept(tmp_path / "caches" / "all")
    records = [json.loads(path.read_text()) for path in (tmp_path / "caches" / "all").glob("members/*/artifact.json")]
    assert records and all("layers" not in record["key"]["ensemble"]["lora"] for record in records)


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16], ids=str)
def test_states_are_kept_in_the_base_models_type(measure, tokenizer, tmp_path, dtype):
    model = base_model(tokenizer, dtype)
    measure("run", model=model, m=1)
    (shard,) = [
        shard for shard in (tmp_path / "caches" / "run").glob("frozen_prefix/*/states-*.bin")
        if shard.stat().st_size == measure.examples.tokens * SHAPE["width"] * dtype.itemsize
    ]  # fmt: skip
    assert json.loads((shard.parent / "index.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


@pytest.fixture
def engine(tokenizer):
    engine = FusedEngine(LORA.attach(base_model(tokenizer).model), ResponseNLL(), 10_000)
    engine.to(CPU)
    return engine


@pytest.fixture
def keep(engine, records, tokenizer, tmp_path):
    examples = Encoder(tokenizer, SHAPE["context"], Cache(tmp_path / "cache")).encode(records)

    def run():
        return prefix_states.keep_prefix_states(
            Cache(tmp_path / "cache"), engine, examples, "hash", 0, BatchSettings(600, 0)
        )

    run.examples = examples
    return run


@pytest.mark.parametrize("shard_bytes", [1, 4000, 1 << 20])
def test_a_row_is_read_as_it_is_computed_alone(keep, engine, monkeypatch, shard_bytes):
    monkeypatch.setattr(prefix_states, "SHARD_BYTES", shard_bytes)
    states = pickle.loads(pickle.dumps(keep()))
    assert (len(states.first_rows) == 1) == (shard_bytes == 1 << 20)
    rows = np.random.default_rng(0).permutation(len(keep.examples))[:9]
    read = states.read(rows, 96)
    assert read.shape == (9, 96, SHAPE["width"]) and read.dtype == torch.float64
    for row, row_states in zip(rows.tolist(), read, strict=True):
        input_ids = torch.tensor(keep.examples.table[row]["input_ids"])[None]
        expected = engine.compute_prefix_states(engine.prefix, input_ids)[0]
        torch.testing.assert_close(row_states[: len(expected)], expected, rtol=1e-9, atol=1e-12)
        assert torch.equal(row_states[len(expected) :], row_states[len(expected) - 1].expand(96 - len(expected), -1))


def test_a_part_of_the_rows_reads_the_states_of_all(keep, engine, tmp_path, capsys):
    whole = keep()
    chosen_ids = keep.examples.example_ids[[2, 3, 11, 20]]
    part = keep.examples.select(chosen_ids.tolist())
    capsys.readouterr()
    states = prefix_states.keep_prefix_states(Cache(tmp_path / "cache"), engine, part, "hash", 0, BatchSettings(600, 0))
    assert capsys.readouterr().out == "" and not states.is_new
    assert torch.equal(states.read(np.arange(4), 96), whole.read(np.array([2, 3, 11, 20]), 96))
    other_model = prefix_states.keep_prefix_states(
        Cache(tmp_path / "cache"), engine, part, "another", 0, BatchSettings(600, 0)
    )
    assert other_model.is_new and len(other_model.lengths) == 4


def test_rows_that_are_not_all_kept_are_computed(keep, engine, tmp_path):
    cache, batches = Cache(tmp_path / "cache"), BatchSettings(600, 0)
    part = keep.examples.select(keep.examples.example_ids[:5].tolist())
    assert prefix_states.keep_prefix_states(cache, engine, part, "hash", 0, batches).is_new
    assert keep().is_new


def test_a_process_without_rows_gets_an_empty_batch(keep):
    buckets = LengthBuckets.of(keep.examples.lengths, 4, 2, 0)
    batches = MemberBatches(keep.examples, buckets, [0, 1], 0, 1, 0, lambda rows: rows[:0], row_states=keep())
    assert batches[0].prefix_states.shape == (2, 0, 1, SHAPE["width"])


def test_damaged_states_are_made_again(keep, capsys):
    states = keep()
    shard = states.folder / "states-000.bin"
    content, expected = shard.read_bytes(), states.read(np.arange(5), 96)
    shard.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    again = keep()
    assert "is not what was written there" in " ".join(capsys.readouterr().out.split())
    assert shard.read_bytes() == content and torch.equal(again.read(np.arange(5), 96), expected)
    assert again.is_new and not keep().is_new


def test_states_half_made_are_never_read(keep, engine, monkeypatch):
    computed = []

    def stop_at_the_second(prefix, input_ids):
        if computed:
            raise KilledHere
        computed.append(input_ids)
        return type(engine).compute_prefix_states(engine, prefix, input_ids)

    monkeypatch.setattr(engine, "compute_prefix_states", stop_at_the_second, raising=True)
    with pytest.raises(KilledHere):
        keep()
    monkeypatch.undo()
    assert keep().is_new and len(keep().lengths) == ROWS


@pytest.mark.slow
def test_a_killed_training_goes_on_bit_for_bit(measure, tmp_path):
    cache = tmp_path / "shared"
    with pytest.raises(KilledHere):
        measure("killed", cache=cache, trainer=counting(Steps(8)), checkpoint_minutes=1e-9)
    resumed = measure("resumed", cache=cache, checkpoint_minutes=1e-9)
    assert_identical_logs(resumed, measure("alone", checkpoint_minutes=1e-9), (1, 2))
