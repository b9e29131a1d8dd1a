"""Fine-tuning of a target: exact under micro-batching, the same start for all, an honest curve, a loadable adapter."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM
from tests.support.disk import files_up_to
from tests.support.interruption import KilledHere, Steps, counting
from tests.support.pipeline import quiet_trainer

from gradfiltering.data.dataset import Columns
from gradfiltering.data.examples import Encoder
from gradfiltering.data.sources import TaskSource
from gradfiltering.errors import UserError
from gradfiltering.finetuning.lora_finetuning import FineTuningSettings, Updates, finetune
from gradfiltering.finetuning.targets import finetune_all, training_sets
from gradfiltering.models.language_model import PretrainedModel
from gradfiltering.models.lora import LoraSettings
from gradfiltering.runs.cache import Cache, Unfinished, Workspace
from gradfiltering.synthetic.planted_defects import PlantedDefects
from gradfiltering.synthetic.pretraining import new_model, train_tokenizer

SHAPE = {"architecture": "llama", "layers": 1, "heads": 2, "width": 16, "context": 96, "vocabulary": 300}
RTOL, ATOL = 1e-4, 1e-6
ROWS = 21


def settings(**changes):
    lora = LoraSettings(rank=2, alpha=4, target_modules="all-linear", init_b_std=0.0)
    usual = FineTuningSettings(
        epochs=2, batch_size=6, micro_batch_tokens=4096, lr=0.01, schedule="cosine", warmup_share=0.1,
        weight_decay=0.0, clip_norm=1.0, records=5, checkpoint_minutes=10, lora=lora,
    )  # fmt: skip
    return replace(usual, **changes)


@pytest.fixture(scope="module")
def records():
    none = PlantedDefects(0, 0, 0, 0, 0, 0)
    return TaskSource(ROWS, 5, None, "plain", Columns("instruction", "input", "output"), none).load(seed=0)


@pytest.fixture
def base_model(records, tmp_path):
    tokenizer = train_tokenizer([row["instruction"] + " " + row["output"] for row in records.rows], 300)
    new_model(SHAPE, tokenizer, 0).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    loader = PretrainedModel(str(tmp_path / "base"), None, "fp32", "sdpa", trust_remote_code=False)
    return loader.load(Cache(tmp_path / "cache"), 0, quiet_trainer)


def workspace(run_dir, cache, seed=0, trainer=quiet_trainer):
    return Workspace(run_dir, Cache(cache), seed, trainer)


@pytest.fixture
def rows(records, base_model, tmp_path):
    return Encoder(base_model.tokenizer, 96, Cache(tmp_path / "cache")).encode_all(records)


@pytest.fixture
def tune(rows, base_model, tmp_path):
    def run(name, how=None, seed=0):
        unfinished = Unfinished(Cache(tmp_path / "cache"), {"name": name})
        result = finetune(name, base_model, rows, how or settings(), seed, quiet_trainer, tmp_path / name, unfinished)
        with (tmp_path / name / "curve.csv").open(newline="") as file:
            curve = list(csv.DictReader(file))
        return result, curve, AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / name / "adapter")).state_dict()

    return run


def test_curve_counts_examples_and_tokens_and_the_loss_falls(tune, records):
    result, curve, _ = tune("candidate")
    steps = 2 * -(-ROWS // 6)
    assert result.steps == steps and result.examples == ROWS
    assert [int(point["step"]) for point in curve] == np.linspace(0, steps, 5).round().astype(int).tolist()
    assert int(curve[-1]["examples_seen"]) == 2 * ROWS and int(curve[-1]["tokens_seen"]) == result.tokens
    assert curve[0]["train_loss"] == "" and float(curve[0]["heldout_loss"]) > result.heldout_loss
    assert float(curve[-1]["train_loss"]) == pytest.approx(result.final_loss)


def test_micro_batches_change_nothing(tune):
    _, whole, first = tune("whole")
    _, cut, second = tune("cut", settings(micro_batch_tokens=40))
    np.testing.assert_allclose(
        [float(point["heldout_loss"]) for point in whole], [float(point["heldout_loss"]) for point in cut], rtol=RTOL
    )
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=RTOL, atol=1e-4)


def test_same_seed_twice_is_identical_and_the_backbone_is_unchanged(tune, base_model):
    before = {name: value.clone() for name, value in base_model.model.state_dict().items()}
    _, _, first = tune("first")
    _, _, again = tune("again")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(value, before[name]) for name, value in base_model.model.state_dict().items())


def test_loaded_adapter_gives_the_heldout_loss_of_the_curve(tune, records, base_model, tmp_path):
    from gradfiltering.data.batches import LengthBatches, make_batch_loader
    from gradfiltering.evidence.passes import response_losses
    from gradfiltering.models.objectives import ResponseNLL

    result, _, _ = tune("candidate")
    model = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "candidate" / "adapter"))
    heldout = Encoder(base_model.tokenizer, 96, Cache(tmp_path / "cache")).encode_heldout(records)
    batches = make_batch_loader(LengthBatches(heldout, 4096, base_model.pad_id), 0)
    losses = response_losses(model, ResponseNLL(), batches, torch.device("cpu"))
    assert np.mean(list(losses.values())) == pytest.approx(result.heldout_loss, rel=1e-5)


def test_merged_target_gives_the_logits_of_the_adapted_one(tune, base_model, tmp_path):
    tune("candidate")
    model = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "candidate" / "adapter")).eval()
    ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        adapted, plain = model(input_ids=ids).logits, base_model.model(input_ids=ids).logits
        merged = model.merge_and_unload()(input_ids=ids).logits
    assert not torch.allclose(adapted, plain, rtol=1e-3), "the adapter does nothing, so merging shows nothing"
    torch.testing.assert_close(merged, adapted, rtol=RTOL, atol=1e-5)


def test_an_update_takes_every_row_once_an_epoch(records, base_model, tmp_path):
    examples = Encoder(base_model.tokenizer, 96, Cache(tmp_path / "cache")).encode(records)
    updates = Updates(examples, settings(), 0, seed=0)
    seen = torch.cat([batch.example_id for step in range(4) for batch in updates[step]])
    assert sorted(seen.tolist()) == list(range(ROWS))


def test_training_sets(records):
    ids = np.arange(50)
    sets = training_sets([3, 5, 8], ids, 50, ["full", "random"], seed=0)
    assert sets["candidate"] == [3, 5, 8] and sets["full"] == ids.tolist() and len(sets["random"]) == 3
    assert sets == training_sets([3, 5, 8], ids, 50, ["full", "random"], seed=0)
    with pytest.raises(UserError, match="best"):
        training_sets([3], ids, 50, ["best"], seed=0)


def test_rows_that_leave_no_response_are_an_error(records, base_model, tmp_path):
    rows = Encoder(base_model.tokenizer, 96, Cache(tmp_path / "cache")).encode_all(records)
    with pytest.raises(UserError, match=r"candidate.*max_tokens"):
        finetune_all(
            {"candidate": [999]}, base_model, rows, settings(), workspace(tmp_path / "run", tmp_path / "cache")
        )


@pytest.mark.parametrize("change", [{"epochs": 0}, {"schedule": "steps"}, {"warmup_share": 1.0}, {"records": 1}])
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(UserError, match=f"target.tuning.{next(iter(change))}"):
        settings(**change)


def test_a_model_of_the_same_rows_is_trained_once_for_all_runs(base_model, rows, tmp_path):
    ids = rows.examples.example_ids.tolist()
    first = finetune_all(
        {"candidate": ids[:9], "full": ids}, base_model, rows, settings(), workspace(tmp_path / "a", tmp_path / "cache")
    )
    again = finetune_all(
        {"full": ids, "random": ids[:9], "candidate": ids[1:9]}, base_model, rows, settings(),
        workspace(tmp_path / "b", tmp_path / "cache"),
    )  # fmt: skip
    assert [again[name].reused for name in ("full", "random", "candidate")] == [True, True, False]
    assert not any(result.reused for result in first.values())
    assert replace(again["full"], reused=False) == first["full"]
    for one, other in (("a/target/full", "b/target/full"), ("a/target/candidate", "b/target/random")):
        for file in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "curve.csv"):
            assert (tmp_path / one / file).read_bytes() == (tmp_path / other / file).read_bytes()


STEPS = 2 * -(-ROWS // 6)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("killed_at", [1, 2, STEPS // 2 + 1, STEPS - 1])
def test_a_killed_training_goes_on_where_it_was_and_ends_bit_for_bit_the_same(
    base_model, rows, tmp_path, killed_at, schedule
):
    how, cache, ids = settings(checkpoint_minutes=1e-9, schedule=schedule), tmp_path / "cache", [*range(ROWS)]
    with pytest.raises(KilledHere):
        stopped = workspace(tmp_path / "run", cache, trainer=counting(Steps(killed_at)))
        finetune_all({"full": ids}, base_model, rows, how, stopped)
    steps = Steps()
    resumed = finetune_all(
        {"full": ids}, base_model, rows, how, workspace(tmp_path / "run", cache, trainer=counting(steps))
    )
    assert steps.taken == STEPS - killed_at, "updates that had been made were made again, or none was"
    assert not any((cache / "interrupted").iterdir()), "the checkpoint was left behind"
    seldom = replace(how, checkpoint_minutes=10)
    whole = finetune_all({"full": ids}, base_model, rows, seldom, workspace(tmp_path / "whole", tmp_path / "other"))
    assert_same_target(resumed["full"], whole["full"], tmp_path / "run/target/full", tmp_path / "whole/target/full")


def test_a_run_killed_after_the_last_update_only_writes_the_model(base_model, rows, tmp_path, monkeypatch):
    how, cache, ids = settings(checkpoint_minutes=1e-9), tmp_path / "cache", [*range(ROWS)]
    whole = finetune_all({"full": ids}, base_model, rows, how, workspace(tmp_path / "whole", tmp_path / "other"))
    with monkeypatch.context() as patched, pytest.raises(KilledHere):
        patched.setattr("peft.PeftModel.save_pretrained", killed)
        finetune_all({"full": ids}, base_model, rows, how, workspace(tmp_path / "run", cache))
    steps = Steps()
    resumed = finetune_all(
        {"full": ids}, base_model, rows, how, workspace(tmp_path / "run", cache, trainer=counting(steps))
    )
    assert steps.taken == 0
    assert_same_target(resumed["full"], whole["full"], tmp_path / "run/target/full", tmp_path / "whole/target/full")


def killed(*_, **__):
    raise KilledHere


def assert_same_target(one, other, folder, other_folder):
    file = "adapter/adapter_model.safetensors"
    assert (folder / file).read_bytes() == (other_folder / file).read_bytes()
    assert replace(one, seconds=0.0) == replace(other, seconds=0.0)
    curves = []
    for place in (folder, other_folder):
        with (place / "curve.csv").open(newline="") as stream:
            curves.append([{**point, "seconds": ""} for point in csv.DictReader(stream)])
    assert curves[0] == curves[1]


def test_how_often_a_checkpoint_is_kept_makes_no_other_model(base_model, rows, tmp_path):
    for minutes in (1, 5):
        run = workspace(tmp_path / f"{minutes}", tmp_path / "cache")
        made = finetune_all({"full": [1, 2, 3]}, base_model, rows, settings(checkpoint_minutes=minutes), run)
    assert made["full"].reused


@pytest.mark.parametrize("minutes", [10, 1e-9], ids=["the adapter", "a checkpoint"])
def test_a_full_disk_leaves_the_store_usable(base_model, rows, tmp_path, minutes):
    how, cache, ids = settings(checkpoint_minutes=minutes), tmp_path / "cache", [*range(ROWS)]
    with files_up_to(3000), pytest.raises(UserError, match=r"cannot write .*Free some space.*cache\.path="):
        finetune_all({"full": ids}, base_model, rows, how, workspace(tmp_path / "run", cache))
    assert not list(tmp_path.rglob("*.part")) and not (cache / "targets").exists(), "half a model stayed behind"
    again = finetune_all({"full": ids}, base_model, rows, how, workspace(tmp_path / "run", cache))
    whole = finetune_all({"full": ids}, base_model, rows, how, workspace(tmp_path / "whole", tmp_path / "other"))
    assert not again["full"].reused
    assert_same_target(again["full"], whole["full"], tmp_path / "run/target/full", tmp_path / "whole/target/full")


@pytest.mark.parametrize("change", [{"lr": 0.02}, {"epochs": 1}])
def test_other_settings_or_another_seed_train_anew(base_model, rows, tmp_path, change):
    ids, cache = rows.examples.example_ids.tolist(), tmp_path / "cache"
    finetune_all({"full": ids}, base_model, rows, settings(), workspace(tmp_path / "a", cache))
    changed = finetune_all({"full": ids}, base_model, rows, settings(**change), workspace(tmp_path / "b", cache))
    seeded = finetune_all({"full": ids}, base_model, rows, settings(), workspace(tmp_path / "c", cache, seed=1))
    assert not changed["full"].reused and not seeded["full"].reused
