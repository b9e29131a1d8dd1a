"""A model that was measured can be trained: the target may share the proxy's base model."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from gradfiltering.data.batches import make_batch
from gradfiltering.evidence.context import EmbeddingSettings
from gradfiltering.models.causal_model import split_model
from gradfiltering.models.objectives import ResponseNLL
from gradfiltering.planning.calibration import measure_losses
from gradfiltering.planning.model_shapes import read_shape
from gradfiltering.requests import BaseModelLosses, Embeddings, ErrorNorms, ResponseLosses
from tests.support.shared_tensors import make_tensors_anew_when_moved, multiply_by_growing_table


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def shared_model(request, base_model):
    """A base model that makes its weights when it is moved, and a table when it is run."""
    model = deepcopy(base_model.model).to(request.param)
    make_tensors_anew_when_moved(model)
    multiply_by_growing_table(model.transformer.ln_f)
    return replace(base_model, model=model)


def check_trains(base_model, examples):
    """Takes the gradients of an adapter under the rows' losses."""
    model = get_peft_model(base_model.model, LoraConfig(r=2, target_modules=["c_attn", "c_proj"]))
    batch = make_batch(examples, np.arange(len(examples)), base_model.pad_id, (len(examples),))
    ResponseNLL()(split_model(model), batch).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert gradients and all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(
    "request_of_evidence", [BaseModelLosses(), ErrorNorms(), Embeddings(), ResponseLosses("alpaca", 96)], ids=repr
)
def test_a_base_model_that_was_measured_can_be_trained(request_of_evidence, shared_model, rows, measure, make_context):
    measure(request_of_evidence, shared_model, rows, embeddings=EmbeddingSettings(None, 64, centre=True))
    assert not any(weight.is_inference() for weight in shared_model.model.state_dict().values())
    check_trains(shared_model, make_context(shared_model, rows).examples)


def test_a_base_model_that_was_timed_can_be_trained(shared_model, rows, make_context):
    context = make_context(shared_model, rows)
    measure_losses(context, read_shape(shared_model.model))
    check_trains(shared_model, context.examples)
