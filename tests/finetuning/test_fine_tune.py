"""Fine-tuning of a target: exact under micro-batching, one start for all, an honest curve, a loadable adapter."""

import csv
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from peft import AutoPeftModelForCausalLM

from gradfiltering.data.batches import LengthBatches, make_batch_loader
from gradfiltering.data.examples import Rows
from gradfiltering.errors import UserError
from gradfiltering.finetuning.fine_tune import (
    attach_untrained_adapter,
    average_losses_by_source,
    average_losses_by_token,
    fine_tune,
    fine_tune_all,
)
from gradfiltering.finetuning.training_loop import FineTuningModule
from gradfiltering.finetuning.training_sets import TrainingSet
from gradfiltering.models.causal_model import token_nll
from gradfiltering.models.lora import load_adapter
from gradfiltering.models.objectives import ResponseNLL
from tests.support.disk import files_up_to
from tests.support.interruption import KilledHere, Steps, counting
from tests.support.model_losses import response_losses
from tests.support.pipeline import quiet_trainer
from tests.support.shared_tensors import multiply_by_growing_table
from tests.support.small_targets import ROW_COUNT, make_training, tuning_settings

RTOL, ATOL = 1e-4, 1e-6
ALL_IDS = [*range(ROW_COUNT)]
STEP_COUNT = 2 * -(-ROW_COUNT // 6)


@pytest.fixture
def tune(rows, base_model, tmp_path):
    def run(name, settings=None):
        folder = tmp_path / name
        folder.mkdir()
        training = make_training(base_model, rows, tmp_path / "run", tmp_path / "cache", settings)
        result = fine_tune(name, rows.examples, training, folder)
        model = AutoPeftModelForCausalLM.from_pretrained(str(folder / "adapter"))
        return result, read_curve(folder), model.state_dict()

    return run


@pytest.fixture
def tune_all(rows, base_model, tmp_path):
    def run(training_sets, run_name, cache_name="cache", settings=None, **options):
        training = make_training(base_model, rows, tmp_path / run_name, tmp_path / cache_name, settings, **options)
        return {name: model.result for name, model in fine_tune_all(as_sets(training_sets), training).items()}

    return run


def as_sets(training_sets):
    return {name: rows if isinstance(rows, TrainingSet) else TrainingSet(rows) for name, rows in training_sets.items()}


def read_curve(folder):
    with (folder / "curve.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same_target(result, other_result, folder, other_folder):
    weights_file = "adapter/adapter_model.safetensors"
    assert (folder / weights_file).read_bytes() == (other_folder / weights_file).read_bytes()
    assert replace(result, seconds=0.0) == replace(other_result, seconds=0.0)
    curve, other_curve = ([{**point, "seconds": ""} for point in read_curve(f)] for f in (folder, other_folder))
    assert curve == other_curve


def test_curve_counts_examples_and_tokens_and_the_loss_falls(tune):
    result, curve, _ = tune("candidate")
    assert result.steps == STEP_COUNT and result.examples == ROW_COUNT
    assert [int(point["step"]) for point in curve] == np.linspace(0, STEP_COUNT, 5).round().astype(int).tolist()
    assert int(curve[-1]["examples_seen"]) == 2 * ROW_COUNT and int(curve[-1]["tokens_seen"]) == result.tokens
    assert curve[0]["train_loss"] == "" and float(curve[0]["heldout_loss"]) > result.heldout_loss
    assert float(curve[-1]["train_loss"]) == pytest.approx(result.final_loss)


def test_micro_batches_change_nothing(tune):
    _, whole_curve, whole_adapter = tune("whole")
    _, cut_curve, cut_adapter = tune("cut", tuning_settings(micro_batch_tokens=40))
    whole_losses, cut_losses = ([float(point["heldout_loss"]) for point in c] for c in (whole_curve, cut_curve))
    np.testing.assert_allclose(whole_losses, cut_losses, rtol=RTOL)
    for name, value in whole_adapter.items():
        torch.testing.assert_close(value, cut_adapter[name], rtol=RTOL, atol=1e-4)


def test_same_seed_is_identical_and_the_base_model_unchanged(tune, base_model):
    weights_before = {name: value.clone() for name, value in base_model.model.state_dict().items()}
    _, _, first_adapter = tune("first")
    _, _, second_adapter = tune("second")
    assert all(torch.equal(first_adapter[name], second_adapter[name]) for name in first_adapter)
    assert all(torch.equal(value, weights_before[name]) for name, value in base_model.model.state_dict().items())


def test_what_the_model_makes_for_heldout_rows_can_be_trained_with(tune, base_model):
    multiply_by_growing_table(base_model.model.model.norm)  # these rows come before the first that is trained on
    result, _, _ = tune("candidate")
    assert result.steps == STEP_COUNT


def test_loaded_adapter_gives_the_heldout_loss_of_the_curve(tune, rows, base_model, tmp_path):
    result, _, _ = tune("candidate")
    model = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "candidate" / "adapter"))
    batches = make_batch_loader(LengthBatches(rows.heldout, 4096, base_model.pad_id), 0)
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


def test_update_follows_the_mean_over_supervised_tokens(base_model, rows, tmp_path):
    """One update of plain gradient size: AdamW's first moment is a tenth of the gradient of the token mean."""
    settings = tuning_settings(epochs=1, batch_size=ROW_COUNT, micro_batch_tokens=60, clip_norm=None)
    moments = {}

    def build(**options):
        trainer = quiet_trainer(**options)
        fit = trainer.fit

        def fit_and_read(module, *data):
            fit(module, *data)
            state = trainer.optimizers[0].state
            moments.update({name: state[value]["exp_avg"].clone() for name, value in module.trained_parameters.items()})

        trainer.fit = fit_and_read
        return trainer

    no_heldout = Rows(rows.examples, None)
    training = make_training(base_model, no_heldout, tmp_path, tmp_path / "cache", settings, trainer=build)
    fine_tune("one", rows.examples, training, tmp_path)
    with attach_untrained_adapter(base_model, settings, 0) as model:
        (batch,) = LengthBatches(rows.examples, 10**6, base_model.pad_id)
        token_sum = token_nll(model(input_ids=batch.input_ids).logits, batch.labels).sum()
        (token_sum / rows.examples.response_tokens.sum()).backward()
        for name, value in model.named_parameters():
            if value.requires_grad:
                torch.testing.assert_close(moments[name], 0.1 * value.grad, rtol=RTOL, atol=ATOL)


def test_rows_that_leave_no_response_are_an_error(tune_all, tmp_path):
    with pytest.raises(UserError, match=r"candidate.*max_tokens"):
        tune_all({"candidate": [999]}, "run")


@pytest.mark.parametrize("public_name", ["some/model", "/home/me/model", None])
def test_adapters_of_a_run_carry_the_public_name(public_name, rows, base_model, tmp_path):
    for run_name, name in (("a", "other/name"), ("b", public_name)):  # the second run takes what the first trained
        named_model = replace(base_model, public_name=name)
        training = make_training(named_model, rows, tmp_path / run_name, tmp_path / "cache")
        fine_tune_all({"candidate": TrainingSet(ALL_IDS[:6])}, training)
    config_files = [tmp_path / run_name / "target/candidate/adapter/adapter_config.json" for run_name in "ab"]
    names = [json.loads(config_file.read_text("utf-8"))["base_model_name_or_path"] for config_file in config_files]
    assert names == ["other/name", public_name]
    for folder in ("a", "b"):
        adapter = load_adapter(base_model.model, tmp_path / folder / "target/candidate/adapter")
        adapter.unload()


def test_rows_trained_before_are_taken_from_the_cache(tune_all, tmp_path):
    first = tune_all({"candidate": ALL_IDS[:9], "full": ALL_IDS}, "a")
    second = tune_all({"full": ALL_IDS, "random": ALL_IDS[:9], "candidate": ALL_IDS[1:9]}, "b")
    assert [second[name].reused for name in ("full", "random", "candidate")] == [True, True, False]
    assert not any(result.reused for result in first.values())
    assert replace(second["full"], reused=False) == first["full"]
    for folder, other_folder in (("a/target/full", "b/target/full"), ("a/target/candidate", "b/target/random")):
        for file in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "curve.csv"):
            assert (tmp_path / folder / file).read_bytes() == (tmp_path / other_folder / file).read_bytes()


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("killed_at", [1, 2, STEP_COUNT // 2 + 1, STEP_COUNT - 1])
def test_killed_training_resumes_and_ends_bit_for_bit_the_same(tune_all, tmp_path, killed_at, schedule):
    settings = tuning_settings(checkpoint_minutes=1e-9, schedule=schedule)
    with pytest.raises(KilledHere):
        tune_all({"full": ALL_IDS}, "run", settings=settings, trainer=counting(Steps(killed_at)))
    steps = Steps()
    resumed = tune_all({"full": ALL_IDS}, "run", settings=settings, trainer=counting(steps))
    assert steps.taken == STEP_COUNT - killed_at, "finished updates were repeated, or none was made"
    assert not any((tmp_path / "cache/interrupted").iterdir()), "the checkpoint was left behind"
    rarely_saved = replace(settings, checkpoint_minutes=10)
    whole = tune_all({"full": ALL_IDS}, "whole", "other", rarely_saved)
    assert_same_target(resumed["full"], whole["full"], tmp_path / "run/target/full", tmp_path / "whole/target/full")


def test_run_killed_after_the_last_update_only_writes_the_model(tune_all, tmp_path, monkeypatch):
    settings = tuning_settings(checkpoint_minutes=1e-9)
    whole = tune_all({"full": ALL_IDS}, "whole", "other", settings)
    with monkeypatch.context() as patched, pytest.raises(KilledHere):
        patched.setattr("peft.PeftModel.save_pretrained", raise_killed)
        tune_all({"full": ALL_IDS}, "run", settings=settings)
    steps = Steps()
    resumed = tune_all({"full": ALL_IDS}, "run", settings=settings, trainer=counting(steps))
    assert steps.taken == 0
    assert_same_target(resumed["full"], whole["full"], tmp_path / "run/target/full", tmp_path / "whole/target/full")


def raise_killed(*_, **__):
    raise KilledHere


def test_time_between_checkpoints_makes_no_other_model(tune_all, tmp_path):
    for minutes in (1, 5):
        settings = tuning_settings(checkpoint_minutes=minutes)
        results = tune_all({"full": [1, 2, 3]}, f"{minutes}", settings=settings)
    assert results["full"].reused


@pytest.mark.parametrize("minutes", [10, 1e-9], ids=["the adapter", "a checkpoint"])
def test_full_disk_leaves_the_cache_usable(tune_all, tmp_path, minutes):
    settings = tuning_settings(checkpoint_minutes=minutes)
    with files_up_to(3000), pytest.raises(UserError, match=r"cannot write .*Free some space.*cache\.path="):
        tune_all({"full": ALL_IDS}, "run", settings=settings)
    assert not list(tmp_path.rglob("*.part")), "half a checkpoint stayed behind"
    assert not any((tmp_path / "cache/targets").iterdir()), "half a model stayed behind"
    second = tune_all({"full": ALL_IDS}, "run", settings=settings)
    whole = tune_all({"full": ALL_IDS}, "whole", "other", settings)
    assert not second["full"].reused
    assert_same_target(second["full"], whole["full"], tmp_path / "run/target/full", tmp_path / "whole/target/full")


@pytest.mark.parametrize("change", [{"lr": 0.02}, {"epochs": 1}])
def test_other_settings_or_another_seed_train_anew(tune_all, tmp_path, change):
    tune_all({"full": ALL_IDS}, "a")
    changed = tune_all({"full": ALL_IDS}, "b", settings=tuning_settings(**change))
    seeded = tune_all({"full": ALL_IDS}, "c", seed=1)
    assert not changed["full"].reused and not seeded["full"].reused


def test_the_same_rows_with_fewer_updates_are_another_model(tune_all):
    sets = {"full": TrainingSet(ALL_IDS), "full_same_updates": TrainingSet(ALL_IDS, 3)}
    first, again = tune_all(sets, "a"), tune_all(sets, "b")
    assert (first["full"].steps, first["full_same_updates"].steps) == (STEP_COUNT, 3)
    assert first["full_same_updates"].examples == first["full"].examples == ROW_COUNT
    assert first["full_same_updates"].tokens < first["full"].tokens
    assert all(model.reused for model in again.values()) and not any(model.reused for model in first.values())


def test_losses_of_held_out_rows_are_averaged_by_source(rows, base_model, tmp_path):
    training = make_training(base_model, rows, tmp_path / "run", tmp_path / "cache")
    model = fine_tune_all({"candidate": TrainingSet(ALL_IDS)}, training)["candidate"]
    with (tmp_path / "run" / "target" / "candidate" / "heldout_losses.csv").open(newline="") as file:
        losses = {int(row["example_id"]): float(row["loss"]) for row in csv.DictReader(file)}
    assert list(losses) == rows.heldout.example_ids.tolist()
    assert np.mean(list(losses.values())) == pytest.approx(model.result.heldout_loss)
    sources = ["first" if row_id == 0 else "others" for row_id in range(len(losses))]
    averages = average_losses_by_source(model, sources)
    assert averages == pytest.approx({"first": losses[0], "others": np.mean(list(losses.values())[1:])})
    assert average_losses_by_source(model, None) == {}
    tokens = rows.heldout.response_tokens.tolist()
    assert len(set(tokens)) > 1
    by_token = sum(loss * count for loss, count in zip(losses.values(), tokens, strict=True)) / sum(tokens)
    assert average_losses_by_token(model, rows.heldout) == pytest.approx(by_token)
    assert average_losses_by_token(model, None) is None


def test_the_loss_before_training_is_measured_once_for_all_models(rows, base_model, tmp_path, monkeypatch):
    measured = []
    measure = FineTuningModule._measure_heldout_losses

    def measure_and_count(module, heldout):
        measured.append(module.model_name)
        return measure(module, heldout)

    monkeypatch.setattr(FineTuningModule, "_measure_heldout_losses", measure_and_count)
    example_ids = rows.examples.example_ids.tolist()
    sets = {"full": TrainingSet(example_ids), "random": TrainingSet(example_ids[:8])}
    together = fine_tune_all(sets, make_training(base_model, rows, tmp_path / "run", tmp_path / "cache"))
    curves = {name: pd.read_csv(model.folder / "curve.csv") for name, model in together.items()}
    assert len(measured) == sum(map(len, curves.values())) - 1
    assert curves["full"]["heldout_loss"][0] == curves["random"]["heldout_loss"][0]
    alone = fine_tune_all(
        {"random": sets["random"]}, make_training(base_model, rows, tmp_path / "alone", tmp_path / "other_cache")
    )
    alone_curve = pd.read_csv(alone["random"].folder / "curve.csv")
    columns = ["step", "examples_seen", "train_loss", "heldout_loss"]
    pd.testing.assert_frame_equal(curves["random"][columns], alone_curve[columns])
