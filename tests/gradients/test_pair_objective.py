"""An objective whose example is two sequences, added as a class: engines need to know nothing of it."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gradfiltering.data.batches import Batch
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.gradients.vmap import VmapEngine
from gradfiltering.models.causal_model import FunctionalModel

RTOL = 1e-9


@dataclass
class PairBatch(Batch):
    """Preferred and rejected answers, [..., 2, T], with the base model's log-probabilities, [..., 2]."""

    reference: Tensor


class Preference:
    """The loss of direct preference optimisation (Rafailov et al., 2023, eq. 7)."""

    def __call__(self, model, batch):
        sequences, labels = batch.input_ids.flatten(0, 1), batch.labels.flatten(0, 1)
        log_probability = -model.token_losses(sequences, labels).sum(1).view(-1, 2)
        margins = log_probability - batch.reference
        return -F.logsigmoid(0.3 * (margins[:, 0] - margins[:, 1]))


@pytest.fixture
def pairs(make_batch):
    sides = [make_batch([12, 5, 9], [4, 2, 3], pad_to=12, seed=seed) for seed in (0, 1)]
    input_ids = torch.stack([side.input_ids for side in sides], 1)
    labels = torch.stack([side.labels for side in sides], 1)
    reference = -torch.rand(3, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return PairBatch(input_ids, labels, torch.arange(3), reference)


@pytest.mark.parametrize("chunk_tokens", [1, 60, 10_000])
@pytest.mark.parametrize(
    ("engine_type", "layers"), [(FusedEngine, "all"), (FusedEngine, 1), (VmapEngine, "all"), (VmapEngine, 1)]
)
@pytest.mark.parametrize("are_given", [False, True], ids=["no states", "states given"])
def test_gradients_are_those_of_the_whole_pair(
    make_model, make_adapters, pairs, engine_type, layers, are_given, chunk_tokens
):
    model, adapters, _ = make_adapters(make_model("llama"), layers=layers)
    engine = engine_type(model, Preference(), chunk_tokens)
    engine.to(torch.device("cpu"))
    given_pairs = pairs
    if are_given:
        layer = model.get_base_model().model.layers[1]
        states = []
        hook = layer.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
        model.get_base_model()(input_ids=pairs.input_ids.flatten(0, 1))
        hook.remove()
        given_pairs = replace(pairs, prefix_states=states[0].view(*pairs.input_ids.shape, -1))
    measured = engine.measure(adapters, given_pairs, with_mean_gradient=True)
    for member in range(3):
        parameters = {name: stacked[member].clone().requires_grad_() for name, stacked in adapters.items()}
        losses = Preference()(FunctionalModel(model, parameters), pairs)
        for row in range(3):
            gradients = torch.autograd.grad(losses[row], list(parameters.values()), retain_graph=True)
            norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
            torch.testing.assert_close(measured.grad_norm[member, row], norm, rtol=RTOL, atol=0)
        mean = torch.autograd.grad(losses.mean(), list(parameters.values()))
        for name, expected in zip(parameters, mean, strict=True):
            torch.testing.assert_close(measured.mean_gradient[name][member], expected, rtol=RTOL, atol=1e-13)
