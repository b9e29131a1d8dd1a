import re

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from gradfiltering.errors import UserError
from gradfiltering.models.adapted_layers import first_adapted_layer
from gradfiltering.models.lora import LoraSettings, export_adapter, initial_adapters, load_adapter, update_ratio

RTOL = 1e-6


def settings(**changes):
    return LoraSettings(**{"rank": 3, "alpha": 6, "target_modules": "all-linear", "init_b_std": 0.0, **changes})


def test_member_starts_the_same_whoever_is_beside_it(make_model):
    model = settings().attach(make_model())
    three = initial_adapters(model, settings(), [0, 1, 2], seed=0)
    alone = initial_adapters(model, settings(), [2], seed=0)
    other = initial_adapters(model, settings(), [2], seed=1)
    for name, value in three.items():
        assert torch.equal(value[2], alone[name][0]), f"{name} of member 2 depends on its neighbours"
    drawn = [name for name in three if "lora_A" in name]
    assert drawn and all(not torch.equal(three[name][0], three[name][1]) for name in drawn)
    assert all(not torch.equal(alone[name], other[name]) for name in drawn)


def test_a_is_uniform_within_its_bound_and_b_has_the_asked_spread(make_model):
    asked = settings(rank=8, init_b_std=0.3)
    start = initial_adapters(asked.attach(make_model()), asked, range(40), seed=0)
    for name, value in start.items():
        if "lora_A" in name:
            bound = value.shape[2] ** -0.5
            assert value.abs().max() <= bound
            assert value.std() == pytest.approx(bound / 3**0.5, rel=0.05)
        else:
            assert value.std() == pytest.approx(0.3, rel=0.05)


def test_usual_start_has_b_zero(make_model):
    start = initial_adapters(settings().attach(make_model()), settings(), [0], seed=0)
    assert all(not value.any() for name, value in start.items() if "lora_B" in name)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_exported_member_gives_the_logits_it_gave_in_the_ensemble(make_model, make_adapters, tmp_path, architecture):
    model, adapters, _ = make_adapters(make_model(architecture, torch.float32))
    ids = torch.arange(1, 9)[None]
    own = {name: value[1] for name, value in adapters.items()}
    inside = torch.func.functional_call(model, own, (), {"input_ids": ids}).logits
    export_adapter(model, adapters, 1, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(make_model(architecture, torch.float32), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(loaded(input_ids=ids).logits, inside, rtol=RTOL, atol=1e-6)
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


@pytest.mark.parametrize("targets", [["attn.c_attn"], ["mlp.c_fc", "mlp.c_proj"], "all-linear"], ids=str)
def test_merged_member_gives_the_logits_of_the_adapted_model(make_model, make_adapters, tmp_path, targets):
    model, adapters, _ = make_adapters(make_model("gpt2"), targets=targets)
    ids = torch.arange(1, 9)[None]
    own = {name: value[2] for name, value in adapters.items()}
    inside = torch.func.functional_call(model, own, (), {"input_ids": ids}).logits
    export_adapter(model, adapters, 2, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(make_model("gpt2"), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(loaded(input_ids=ids).logits, inside, rtol=1e-9, atol=1e-9)
    merged = loaded.merge_and_unload()
    assert not any("lora" in name for name, _ in merged.named_modules())
    torch.testing.assert_close(merged(input_ids=ids).logits, inside, rtol=1e-9, atol=1e-9)


def test_update_ratio_equals_the_explicit_products(make_model, make_adapters):
    plain = make_model()
    model, adapters, shape = make_adapters(plain)
    ratios = update_ratio(model, adapters, shape)
    for member in range(3):
        updates = weights = 0.0
        for name in (name for name in adapters if "lora_A" in name):
            product = adapters[name.replace("lora_A", "lora_B")][member] @ adapters[name][member]
            updates += float((shape.alpha / shape.rank * product).square().sum())
            layer = model.get_submodule(name.split(".lora_A")[0]).get_base_layer()
            weights += float(layer.weight.square().sum())
        assert ratios[member] == pytest.approx((updates / weights) ** 0.5, rel=1e-9)


def adapted_layers(model):
    names = [name for name, module in model.get_base_model().named_modules() if isinstance(module, LoraLayer)]
    return sorted({int(name.split(".h.")[1].split(".")[0]) for name in names}), len(names)


def twelve_layers():
    config = GPT2Config(
        vocab_size=64, n_positions=32, n_embd=16, n_layer=12, n_head=2, bos_token_id=0, eos_token_id=0
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("choice", "layers"),
    [
        ("all", list(range(12))), ("last_1", [11]), ("last_12", list(range(12))), (3, [9, 10, 11]), (0.25, [9, 10, 11]),
        (0.26, [8, 9, 10, 11]), (1.0, list(range(12))), ([11, 0, 1], [0, 1, 11]), ([1], [1]),
    ],
    ids=str,
)  # fmt: skip
def test_only_the_chosen_layers_have_adapters(choice, layers):
    model = settings(layers=choice).attach(twelve_layers())
    assert adapted_layers(model) == (layers, 4 * len(layers))  # 4 modules a layer
    assert first_adapted_layer(model) == layers[0]
    assert {name.split(".lora_")[0] for name in initial_adapters(model, settings(layers=choice), [0], 0)} == {
        f"base_model.model.{name}" for name, module in model.get_base_model().named_modules()
        if isinstance(module, LoraLayer)
    }  # fmt: skip


def test_a_member_starts_in_its_layers_as_with_all_layers(make_model):
    whole = initial_adapters(settings().attach(make_model()), settings(), [1], seed=0)
    upper = settings(layers=1)
    start = initial_adapters(upper.attach(make_model()), upper, [1], seed=0)
    assert len(start) == len(whole) / 2
    assert all(torch.equal(value, whole[name]) for name, value in start.items())


@pytest.mark.parametrize("choice", ["last_1", [0]], ids=str)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_adapters_of_some_layers_load_in_plain_peft(make_model, make_adapters, tmp_path, architecture, choice):
    model, adapters, _ = make_adapters(make_model(architecture, torch.float32), layers=choice)
    ids = torch.arange(1, 9)[None]
    inside = torch.func.functional_call(
        model, {name: value[1] for name, value in adapters.items()}, (), {"input_ids": ids}
    ).logits
    export_adapter(model, adapters, 1, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(make_model(architecture, torch.float32), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(loaded(input_ids=ids).logits, inside, rtol=RTOL, atol=1e-6)
    lora_names = [name for name, _ in loaded.named_parameters() if "lora_" in name]
    assert sorted(lora_names) == sorted(adapters)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": "last_13"}, "layers is last_13: it asks for the last 13 layers, and the model has 12 (GPT2LMHead"),
        ({"layers": 13}, "layers is 13: it asks for the last 13 layers, and the model has 12"),
        ({"layers": [3, 12, 40]}, "it names layers that do not exist (12, 40); the model has 0 to 11"),
        ({"layers": 1, "target_modules": ["c_attn", "lm_head"]}, "target_modules names lm_head, outside of the layers"),
    ],
    ids=str,
)
def test_layers_that_do_not_exist_are_refused_with_those_that_do(changes, words):
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        settings(**changes).attach(twelve_layers())
    assert "layers" in caught.value.arguments


def test_a_model_without_a_list_of_layers_is_refused(make_model):
    model = make_model()
    model.transformer.h = nn.Sequential(*model.transformer.h)
    with pytest.raises(UserError, match="GPT2LMHeadModel has no list of layers to choose from; adapt all layers"):
        settings(layers=1).attach(model)


@pytest.mark.parametrize("choice", ["first_2", "last_0", "last_", "8", [], 0, -1, 1.5, 0.0, [-1], True, None], ids=str)
def test_a_choice_of_layers_out_of_range_is_refused(choice):
    with pytest.raises(UserError, match="layers"):
        settings(layers=choice)


def test_all_layers_keep_the_key_they_had_and_equal_choices_share_theirs():
    assert "layers" not in settings().cache_key()
    assert settings(layers="last_2").cache_key() == settings(layers=2).cache_key()
    keys = [settings(layers=choice).cache_key() for choice in ("all", 1, 2, 0.5, [0], [1])]
    assert all(keys.count(key) == 1 for key in keys)


def test_unknown_target_modules_are_refused(make_model):
    with pytest.raises(UserError, match=r"target_modules is \['no_such_layer'\]"):
        settings(target_modules=["no_such_layer"]).attach(make_model())


@pytest.mark.parametrize("changes", [{"rank": 0}, {"init_b_std": -1.0}])
def test_settings_out_of_range_are_refused(changes):
    name = next(iter(changes))
    with pytest.raises(UserError, match=rf"{name} must be a .*number, got -?\d"):
        settings(**changes)


@pytest.mark.parametrize(
    ("rename", "words"),
    [
        (
            lambda name: None if "h.1.mlp.c_fc.lora_B" in name else name,
            r"lacks .*c_fc\.lora_B.*\(1 in all\)",
        ),
        (lambda name: name.replace("h.1.", "h.7."), r"lacks .*h\.1\."),
        (lambda name: f"extra.{name}", "lacks base_model"),
        (lambda name: name, None),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(make_model, make_adapters, tmp_path, rename, words):
    model, adapters, _ = make_adapters(make_model("gpt2"))
    export_adapter(model, adapters, 1, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = {rename(name): value for name, value in load_file(path).items() if rename(name)}
    save_file(weights, path, metadata={"format": "pt"})
    if words is None:
        loaded = load_adapter(make_model("gpt2"), tmp_path / "adapter")
        parameters = dict(loaded.named_parameters())
        assert all(torch.equal(parameters[name], value[1]) for name, value in adapters.items())
        return
    with pytest.raises(UserError, match=words):
        load_adapter(make_model("gpt2"), tmp_path / "adapter")


def test_a_folder_that_is_no_adapter_is_refused(make_model, tmp_path):
    with pytest.raises(UserError, match=r"cannot load the adapter .*Give an adapter of this base model"):
        load_adapter(make_model("gpt2"), tmp_path)
