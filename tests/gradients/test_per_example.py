"""Gradients of a PEFT model that somebody brings, against autograd on batches of one."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict

from gradfiltering.data.batches import IGNORED
from gradfiltering.errors import UserError
from gradfiltering.gradients.per_example import per_example_gradients
from gradfiltering.gradients.projection import Projection
from gradfiltering.gradients.statistics import squared_norm
from tests.reference.gradients import response_nll

RTOL = 1e-9
LENGTHS, PROMPTS = [12, 5, 9], [4, 4, 2]
NAMES = ["first", "second"]


def lora(rank=3, **options):
    return LoraConfig(r=rank, lora_alpha=6, target_modules="all-linear", **options)


@pytest.fixture
def make_peft_model(make_model):
    def make(architecture="gpt2", second=None):
        model = get_peft_model(make_model(architecture), lora(), adapter_name="first")
        model.add_adapter("second", second or lora())
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = 0.1 * torch.randn(parameter.shape, dtype=torch.float64)
        return model

    return make


@pytest.fixture
def rows(make_batch):
    batch = make_batch(LENGTHS, PROMPTS)
    mask = torch.arange(12) < torch.tensor(LENGTHS)[:, None]
    return {"input_ids": batch.input_ids, "labels": batch.labels, "attention_mask": mask.long()}


def loss_and_gradients(model, adapter_name, row, rows):
    """Loss and each parameter's gradient of one example without its padding."""
    length = LENGTHS[row]
    model.set_adapter(adapter_name)
    model.zero_grad()
    ids, labels = (rows[key][row : row + 1, :length] for key in ("input_ids", "labels"))
    loss = response_nll(model(input_ids=ids).logits[0], labels[0])
    loss.backward()
    named = model.named_parameters()
    gradients = {name: p.grad.clone() for name, p in named if f".{adapter_name}." in name}
    model.zero_grad(set_to_none=True)
    return loss.detach(), gradients


def largest_entry(parameter_name, gradients):
    return gradients.flatten(2).abs().sum(2)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_statistics_equal_autograd_on_batches_of_one(make_peft_model, rows, architecture):
    model = make_peft_model(architecture)
    wanted = ["norm", "loss", "projection", Projection(8, 1), largest_entry]
    measured = per_example_gradients(model, rows, NAMES, wanted)
    assert list(measured) == ["norm", "loss", "projection", "Projection", "largest_entry"]
    assert measured["projection"].shape == (2, 3, 1024)
    for member, adapter_name in enumerate(NAMES):
        for row in range(3):
            loss, gradients = loss_and_gradients(model, adapter_name, row, rows)
            flat = torch.cat([gradient.flatten() for gradient in gradients.values()])
            close = lambda name, value, at=(member, row): torch.testing.assert_close(  # noqa: E731
                measured[name][at], value, rtol=RTOL, atol=1e-12
            )
            close("norm", flat.norm())
            close("loss", loss)
            close("largest_entry", flat.abs().sum())
            projection = Projection(8, 1)
            parts = [
                projection(name.replace(f".{adapter_name}.", ".first."), gradient[None, None])
                for name, gradient in gradients.items()
            ]
            close("Projection", torch.stack(parts).sum(0)[0, 0])


def test_a_statistic_may_have_the_name_of_what_the_norm_is_made_of(make_peft_model, rows):
    measured = per_example_gradients(make_peft_model(), rows, NAMES, ["norm", squared_norm])
    torch.testing.assert_close(measured["squared_norm"], measured["norm"].square(), rtol=RTOL, atol=1e-12)


def test_state_dicts_give_what_their_adapters_give(make_peft_model, rows):
    model = make_peft_model()
    states = [get_peft_model_state_dict(model, adapter_name=name) for name in NAMES]
    by_name = per_example_gradients(model, rows, NAMES)["norm"]
    by_state = per_example_gradients(model, rows, states)["norm"]
    torch.testing.assert_close(by_state, by_name, rtol=0, atol=0)


def test_the_model_is_left_as_it_was(make_peft_model, rows):
    model = make_peft_model()
    model.train()
    model.set_adapter("second")
    base_model = model.get_base_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    structure = str(model)
    logits = base_model(input_ids=rows["input_ids"]).logits
    per_example_gradients(model, rows, ["first"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert flags == {name: p.requires_grad for name, p in model.named_parameters()}
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert model.active_adapter == "second" and str(model) == structure
    assert base_model.config._attn_implementation == "eager"
    assert torch.equal(base_model(input_ids=rows["input_ids"]).logits, logits)


def test_a_model_without_adapters_is_refused(make_model, rows):
    with pytest.raises(UserError, match="GPT2LMHeadModel; give one with LoRA adapters of PEFT"):
        per_example_gradients(make_model(), rows, ["default"])


def test_adapters_that_do_not_fit_are_refused(make_peft_model, rows):
    with pytest.raises(UserError, match="no adapter third; it has first, second"):
        per_example_gradients(make_peft_model(), rows, ["third"])
    with pytest.raises(UserError, match="second and adapter first differ in rank"):
        per_example_gradients(make_peft_model(second=lora(rank=2)), rows, NAMES)
    with pytest.raises(UserError, match="trains biases, magnitudes or whole modules"):
        other = lora(modules_to_save=["lm_head"])
        per_example_gradients(make_peft_model(second=other), rows, ["second"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_mask": torch.ones(3, 12).tril(-1).flip(1)}, "pad on the right"),
        ({"labels": torch.full((3, 12), IGNORED)}, r"examples \[0, 1, 2\] have no label"),
        ({"labels": torch.ones(3, 12, dtype=torch.int64)}, "padding has labels"),
        ({"labels": torch.ones(3, 11, dtype=torch.int64)}, r"labels \(3, 11\)"),
        ({"token_type_ids": torch.zeros(3, 12)}, "give input_ids, labels"),
    ],
)
def test_batches_that_would_be_misread_are_refused(make_peft_model, rows, changes, message):
    with pytest.raises(UserError, match=message):
        per_example_gradients(make_peft_model(), {**rows, **changes}, NAMES)


def test_unknown_statistics_are_refused(make_peft_model, rows):
    with pytest.raises(UserError, match=r"no statistic median; .* norm, loss, projection"):
        per_example_gradients(make_peft_model(), rows, NAMES, ["median"])


def test_adapters_of_a_folder_are_measured(make_peft_model, make_model, rows, tmp_path):
    model = make_peft_model()
    expected = per_example_gradients(model, rows, NAMES)["norm"]
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(make_model(), str(tmp_path / "first"), adapter_name="first")
    loaded.load_adapter(str(tmp_path / "second"), adapter_name="second")
    loaded = loaded.double()
    torch.testing.assert_close(per_example_gradients(loaded, rows, NAMES)["norm"], expected, rtol=RTOL, atol=0)
