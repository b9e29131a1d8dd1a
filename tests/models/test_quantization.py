"""Quantised base models are refused where they cannot be had."""

from importlib import metadata, util

import pytest
import torch

from gradfiltering.errors import UserError
from gradfiltering.models import quantization
from gradfiltering.models.language_model import PretrainedModel
from gradfiltering.models.smollm2 import SmolLM2

SOURCES = [PretrainedModel("some/model", quantization="4bit"), SmolLM2(quantization="8bit")]


@pytest.mark.parametrize("source", SOURCES, ids=["hub", "smollm2"])
def test_without_bitsandbytes_the_install_command_is_named(source, monkeypatch):
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"python -m pip install 'gradfiltering\[quantized\]'") as refusal:
        source.check()
    assert refusal.value.owner is source and refusal.value.arguments == ("quantization",)


@pytest.mark.parametrize(("version", "is_too_old"), [("0.45.5", True), ("0.46.0", False), ("1.0", False)])
def test_an_old_bitsandbytes_is_refused(version, is_too_old, monkeypatch):
    monkeypatch.setattr(util, "find_spec", lambda name: object())
    monkeypatch.setattr(metadata, "version", lambda name: version)
    if not is_too_old:
        quantization.check_quantization_package()
        return
    with pytest.raises(UserError, match=r"bitsandbytes 0\.45\.5 is too old, 0\.46 at least"):
        quantization.check_quantization_package()


def test_a_device_without_quantised_products_is_refused(monkeypatch):
    monkeypatch.setattr(quantization, "check_quantization_package", lambda: None)
    with pytest.raises(UserError, match=r"not mps; leave the quantisation out"):
        quantization.quantized_loading_arguments("4bit", torch.bfloat16, torch.device("mps"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"quantization": "2bit"}, "quantization must be"),
        ({"quantization": "4bit", "precision": "fp64"}, "not in fp64"),
    ],
)
def test_wrong_values_are_refused(arguments, named):
    with pytest.raises(UserError, match=named):
        PretrainedModel("some/model", **arguments)
