"""Layers spread over processes: what cannot be spread is refused, and a process alone holds all of them.

Several processes are compared with one in tests/test_ddp_exact.py.
"""

import pytest
import torch
from torch import nn

from gradfiltering.errors import UserError
from gradfiltering.finetuning import sharded_layers
from gradfiltering.finetuning.fine_tune import SETTINGS_WITHOUT_EFFECT
from gradfiltering.finetuning.sharded_layers import find_sharded_parameters, shard_layers
from gradfiltering.models.language_model import LanguageModel

CPU = torch.device("cpu")


def language_model(model: nn.Module) -> LanguageModel:
    return LanguageModel(model, None, "test", "test", 0.0, True)


def test_one_process_has_nobody_to_share_weights_with():
    with pytest.raises(UserError, match="there is only one; start several, or keep them whole"):
        shard_layers(language_model(nn.Linear(2, 2)), CPU)


def test_a_model_without_a_list_of_layers_is_refused(monkeypatch):
    monkeypatch.setattr(sharded_layers, "world_size", lambda: 2)
    with pytest.raises(UserError, match="Linear has no list of layers"):
        shard_layers(language_model(nn.Linear(2, 2)), CPU)


def test_a_model_that_is_whole_has_no_sharded_parameters():
    assert find_sharded_parameters(nn.Sequential(nn.Linear(2, 2))) == []


def test_no_result_in_the_cache_depends_on_sharding():
    assert "shard_weights" in SETTINGS_WITHOUT_EFFECT
