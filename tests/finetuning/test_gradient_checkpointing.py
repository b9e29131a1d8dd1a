"""Gradient checkpointing: less is stored, and the same is trained."""

import csv

import pytest
import torch
from safetensors.torch import load_file
from torch.autograd.graph import saved_tensors_hooks

from gradfiltering.data.batches import LengthBatches
from gradfiltering.data.encoder import Encoder
from gradfiltering.errors import UserError
from gradfiltering.finetuning.fine_tune import attach_untrained_adapter, fine_tune
from gradfiltering.models.causal_model import SplitModel
from gradfiltering.models.objectives import ResponseNLL
from gradfiltering.models.recomputed_layers import recompute_layers
from gradfiltering.runs.cache import Cache
from tests.support.small_targets import load_small_target, make_training, tuning_settings

RTOL, ATOL = 1e-5, 1e-7


@pytest.fixture(params=["gpt2", "llama"])
def deep_model(request, dataset, tmp_path):
    """A target of four layers."""
    return load_small_target(dataset, tmp_path, architecture=request.param, layers=4)


@pytest.fixture
def deep_rows(dataset, deep_model, tmp_path):
    return Encoder(deep_model.tokenizer, 96, Cache(tmp_path / "cache")).encode_all(dataset)


def stored_bytes(model, batch):
    """Bytes that a forward pass stores for the backward pass, frozen weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages = {}

    def record(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage  # held, so that no address comes twice
        return tensor

    with saved_tensors_hooks(record, lambda tensor: tensor):
        loss = ResponseNLL()(SplitModel(model), batch).sum()
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in storages.values())


def test_the_same_adapter_and_curve_come_out(deep_model, deep_rows, tmp_path):
    curves, adapters = [], []
    for is_checkpointed in (False, True):
        folder = tmp_path / str(is_checkpointed)
        folder.mkdir()
        settings = tuning_settings(gradient_checkpointing=is_checkpointed, lr=0.05)
        training = make_training(deep_model, deep_rows, tmp_path / "run", tmp_path / "cache", settings)
        fine_tune("candidate", deep_rows.examples, training, folder)
        adapters.append(load_file(folder / "adapter/adapter_model.safetensors"))
        with (folder / "curve.csv").open(newline="") as file:
            curves.append([float(point["heldout_loss"]) for point in csv.DictReader(file)])
    assert curves[0][-1] < curves[0][0] - 0.02, "hardly anything was trained, so that nothing is compared"
    assert curves[1] == pytest.approx(curves[0], rel=RTOL)
    for name, value in adapters[0].items():
        torch.testing.assert_close(adapters[1][name], value, rtol=RTOL, atol=ATOL)


def test_half_or_less_is_stored_for_the_backward_pass(deep_model, deep_rows):
    (batch,) = LengthBatches(deep_rows.examples, 10**6, deep_model.pad_id)
    with attach_untrained_adapter(deep_model, tuning_settings(), 0) as model:
        bytes_without = stored_bytes(model, batch)
        with recompute_layers(model):
            bytes_with = stored_bytes(model, batch)
        assert stored_bytes(model, batch) > 0.95 * bytes_without, "the model was not left as it was"
    assert bytes_with < bytes_without / 2


def test_the_model_is_left_as_it_was(deep_model):
    with attach_untrained_adapter(deep_model, tuning_settings(), 0) as model:
        modes_before = [module.training for module in model.modules()]
        with pytest.raises(ZeroDivisionError), recompute_layers(model):
            assert deep_model.model.is_gradient_checkpointing
            1 / 0  # noqa: B018
        assert not deep_model.model.is_gradient_checkpointing
        assert [module.training for module in model.modules()] == modes_before


def test_no_dropout_is_at_work(deep_model):
    with attach_untrained_adapter(deep_model, tuning_settings(), 0) as model, recompute_layers(model):
        dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
        assert not any(module.training for module in dropouts)


def test_an_architecture_without_it_is_refused(deep_model, monkeypatch):
    monkeypatch.setattr(type(deep_model.model), "supports_gradient_checkpointing", False)
    with (
        attach_untrained_adapter(deep_model, tuning_settings(), 0) as model,
        pytest.raises(UserError, match=r"cannot be recomputed.*turn it off"),
        recompute_layers(model),
    ):
        pass
