"""Fine-tuning of a target: exact under micro-batching, one start for all, an honest curve, a loadable adapter."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM
from tests.support.disk import files_up_to
from tests.support.interruption import KilledHere, Steps, counting
from tests.support.model_losses import response_losses
from tests.support.pipeline import quiet_trainer
from tests.support.small_targets import ROW_COUNT, make_workspace, tuning_settings

from gradfiltering.data.batches import LengthBatches, make_batch_loader
from gradfiltering.errors import UserError
from gradfiltering.finetuning.fine_tune import fine_tune, fine_tune_all
from gradfiltering.models.objectives import ResponseNLL

RTOL, ATOL = 1e-4, 1e-6
ALL_IDS = [*range(ROW_COUNT)]
STEP_COUNT = 2 * -(-ROW_COUNT // 6)


@pytest.fixture
def tune(rows, base_model, tmp_path):
    def run(name, settings=None, seed=0):
        folder = tmp_path / name
        folder.mkdir()
        result = fine_tune(
            name, base_model, rows.examples, rows.heldout, settings or tuning_settings(), seed, quiet_trainer,
            ResponseNLL(), folder,
        )  # fmt: skip
        return (
            result,
            read_curve(folder),
            AutoPeftModelForCausalLM.from_pretrained(str(folder / "adapter")).state_dict(),
        )

    return run


@pytest.fixture
def tune_all(rows, base_model):
    def run(training_sets, workspace, settings=None):
        return fine_tune_all(training_sets, base_model, rows, settings or tuning_settings(), ResponseNLL(), workspace)

    return run


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

    fine_tune("one", base_model, rows.examples, None, settings, 0, build, ResponseNLL(), tmp_path)
    from gradfiltering.finetuning.fine_tune import attach_untrained_adapter
    from gradfiltering.models.causal_model import token_nll

    with attach_untrained_adapter(base_model, settings, 0) as model:
        (batch,) = LengthBatches(rows.examples, 10**6, base_model.pad_id)
        token_sum = token_nll(model(input_ids=batch.input_ids).logits, batch.labels).sum()
        (token_sum / rows.examples.response_tokens.sum()).backward()
        for name, value in model.named_parameters():
            if value.requires_grad:
                torch.testing.assert_close(moments[name], 0.1 * value.grad, rtol=RTOL, atol=ATOL)


def test_rows_that_leave_no_response_are_an_error(tune_all, tmp_path):
    with pytest.raises(UserError, match=r"candidate.*max_tokens"):
        tune_all({"candidate": [999]}, make_workspace(tmp_path / "run", tmp_path / "cache"))


def test_rows_trained_before_are_taken_from_the_cache(tune_all, tmp_path):
    first_run = make_workspace(tmp_path / "a", tmp_path / "cache")
    second_run = make_workspace(tmp_path / "b", tmp_path / "cache")
    first = tune_all({"candidate": ALL_IDS[:9], "full": ALL_IDS}, first_run)
    second = tune_all({"full": ALL_IDS, "random": ALL_IDS[:9], "candidate": ALL_IDS[1:9]}, second_run)
    assert [second[name].reused for name in ("full", "random", "candidate")] == [True, True, False]
    assert not any(result.reused for result in first.values())
    assert replace(second["full"], reused=False) == first["full"]
    for folder, other_folder in (("a/target/full", "b/target/full"), ("a/target/candidate", "b/target/random")):
        for file in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "curve.csv"):
            assert (tmp_path / folder / file).read_bytes() == (tmp_path / other_folder / file).read_bytes()


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("killed_at", [1, 2, STEP_COUNT // 2 + 1, STEP_COUNT - 1])
def test_killed_training_resumes_and_ends_bit_for_bit_the_same(tune_all, tmp_path, killed_at, schedule):
    settings, cache = tuning_settings(checkpoint_minutes=1e-9, schedule=schedule), tmp_path / "cache"
    with pytest.raises(KilledHere):
        stopped_run = make_workspace(tmp_path / "run", cache, trainer=counting(Steps(killed_at)))
        tune_all({"full": ALL_IDS}, stopped_run, settings)
    steps = Steps()
    resumed = tune_all({"full": ALL_IDS}, make_workspace(tmp_path / "run", cache, trainer=counting(steps)), settings)
    assert steps.taken == STEP_COUNT - killed_at, "finished updates were repeated, or none was made"
    assert not any((cache / "interrupted").iterdir()), "the checkpoint was left behind"
    rarely_saved = replace(settings, checkpoint_minutes=10)
    whole = tune_all({"full": ALL_IDS}, make_workspace(tmp_path / "whole", tmp_path / "other"), rarely_saved)
    assert_same_target(resumed["full"], whole["full"], tmp_path / "run/target/full", tmp_path / "whole/target/full")


def test_run_killed_after_the_last_update_only_writes_the_model(tune_all, tmp_path, monkeypatch):
    settings, cache = tuning_settings(checkpoint_minutes=1e-9), tmp_path / "cache"
    whole = tune_all({"full": ALL_IDS}, make_workspace(tmp_path / "whole", tmp_path / "other"), settings)
    with monkeypatch.context() as patched, pytest.raises(KilledHere):
        patched.setattr("peft.PeftModel.save_pretrained", raise_killed)
        tune_all({"full": ALL_IDS}, make_workspace(tmp_path / "run", cache), settings)
    steps = Steps()
    resumed = tune_all({"full": ALL_IDS}, make_workspace(tmp_path / "run", cache, trainer=counting(steps)), settings)
    assert steps.taken == 0
    assert_same_target(resumed["full"], whole["full"], tmp_path / "run/target/full", tmp_path / "whole/target/full")


def raise_killed(*_, **__):
    raise KilledHere


def test_time_between_checkpoints_makes_no_other_model(tune_all, tmp_path):
    for minutes in (1, 5):
        workspace = make_workspace(tmp_path / f"{minutes}", tmp_path / "cache")
        results = tune_all({"full": [1, 2, 3]}, workspace, tuning_settings(checkpoint_minutes=minutes))
    assert results["full"].reused


@pytest.mark.parametrize("minutes", [10, 1e-9], ids=["the adapter", "a checkpoint"])
def test_full_disk_leaves_the_cache_usable(tune_all, tmp_path, minutes):
    settings, cache = tuning_settings(checkpoint_minutes=minutes), tmp_path / "cache"
    with files_up_to(3000), pytest.raises(UserError, match=r"cannot write .*Free some space.*cache\.path="):
        tune_all({"full": ALL_IDS}, make_workspace(tmp_path / "run", cache), settings)
    assert not list(tmp_path.rglob("*.part")) and not any((cache / "targets").iterdir()), "half a model stayed behind"
    second = tune_all({"full": ALL_IDS}, make_workspace(tmp_path / "run", cache), settings)
    whole = tune_all({"full": ALL_IDS}, make_workspace(tmp_path / "whole", tmp_path / "other"), settings)
    assert not second["full"].reused
    assert_same_target(second["full"], whole["full"], tmp_path / "run/target/full", tmp_path / "whole/target/full")


@pytest.mark.parametrize("change", [{"lr": 0.02}, {"epochs": 1}])
def test_other_settings_or_another_seed_train_anew(tune_all, tmp_path, change):
    cache = tmp_path / "cache"
    tune_all({"full": ALL_IDS}, make_workspace(tmp_path / "a", cache))
    changed = tune_all({"full": ALL_IDS}, make_workspace(tmp_path / "b", cache), tuning_settings(**change))
    seeded = tune_all({"full": ALL_IDS}, make_workspace(tmp_path / "c", cache, seed=1))
    assert not changed["full"].reused and not seeded["full"].reused
