"""Loss and gradients of preference optimisation are those of TRL's own DPOTrainer."""

import pytest
import torch
from datasets import Dataset

from gradfiltering.data.batches import IGNORED, PreferenceBatch
from gradfiltering.models.causal_model import split_model
from gradfiltering.models.objectives import DirectPreference

trl = pytest.importorskip("trl", reason="TRL is not installed: pip install trl")
pytestmark = pytest.mark.slow

LOSS_RTOL, GRADIENT_RTOL = 1e-6, 1e-4  # TRL keeps log-probabilities in float32
ROWS = [
    {"prompt": "Say it.", "chosen": " right", "rejected": " wrong, and long"},
    {"prompt": "Name one.", "chosen": " another", "rejected": " w"},
]


@pytest.fixture
def trainer(make_model, make_adapters, make_tokenizer, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model, adapters, _ = make_adapters(make_model("gpt2"), members=[0])
    model.get_base_model().resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.get_base_model().double().requires_grad_(False)
    trained = dict(model.named_parameters())
    for name, stacked in adapters.items():
        trained[name].data.copy_(stacked[0])
    arguments = trl.DPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], beta=0.1, max_length=32,
        per_device_train_batch_size=2, disable_tqdm=True, gradient_checkpointing=False, disable_dropout=True,
    )  # fmt: skip
    return trl.DPOTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer
    )


def test_loss_and_gradients_equal_those_of_trl(trainer):
    inputs = next(iter(trainer.get_train_dataloader()))
    model = trainer.model.double().eval()
    model.delete_adapter("ref")  # a copy of the adapter; without it TRL compares with the base model
    parameters = {name: p for name, p in model.named_parameters() if "lora" in name}
    _let_learn(parameters)
    their_loss = trainer._compute_loss(model, inputs, False)
    _let_learn(parameters)  # the reference pass without adapters froze them
    their_gradients = torch.autograd.grad(their_loss, list(parameters.values()))

    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, IGNORED)
    sides = [tensor.unflatten(0, (2, -1)).transpose(0, 1) for tensor in (inputs["input_ids"], labels)]  # [B, 2, T]
    with torch.no_grad(), model.disable_adapter():
        reference = split_model(model).token_losses(inputs["input_ids"], labels).sum(1).view(2, -1).T
    _let_learn(parameters)
    pairs = PreferenceBatch(*sides, torch.arange(2), reference)
    our_loss = DirectPreference(0.1)(split_model(model), pairs).mean()
    our_gradients = torch.autograd.grad(our_loss, list(parameters.values()))
    torch.testing.assert_close(our_loss, their_loss.double(), rtol=LOSS_RTOL, atol=0)
    assert float(our_loss) != pytest.approx(0.6931, abs=1e-3)
    for ours, theirs in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=GRADIENT_RTOL, atol=1e-8)


def _let_learn(parameters):
    for parameter in parameters.values():
        parameter.requires_grad_(True)
