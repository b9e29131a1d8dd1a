"""Digests of models: what computes something else has another, what does not has the same."""

from copy import deepcopy

import pytest

from gradfiltering.models.weights import hash_model


@pytest.mark.parametrize(("architecture", "option", "value"), [("gpt2", "n_head", 4), ("llama", "rms_norm_eps", 0.1)])
def test_equal_weights_under_another_configuration_are_another_model(make_model, architecture, option, value):
    model = make_model(architecture)
    same, other = deepcopy(model), deepcopy(model)
    assert getattr(model.config, option) != value
    setattr(other.config, option, value)
    assert hash_model(same) == hash_model(model) != hash_model(other)


def test_where_a_model_lies_and_how_it_attends_do_not_name_it(make_model):
    model = make_model("llama")
    digest = hash_model(model)
    model.config._name_or_path = "elsewhere"
    model.config.transformers_version = "0"
    model.config.use_cache = not model.config.use_cache
    model.set_attn_implementation("eager")
    assert hash_model(model) == digest


def test_other_weights_are_another_model(make_model):
    model, other = make_model("gpt2"), make_model("gpt2")
    assert hash_model(model) == hash_model(other)
    next(other.parameters()).data[0] += 1
    assert hash_model(model) != hash_model(other)
