import math

import pytest
import torch

from gradfiltering.data.batches import PreferenceBatch
from gradfiltering.errors import UserError
from gradfiltering.models.causal_model import token_nll
from gradfiltering.models.objectives import DirectPreference, ResponseNLL, loss_unit, reads_pairs
from tests.reference.gradients import response_nll
from tests.support.small_models import FixedLogits

RTOL = 1e-12


def test_response_nll_equals_the_token_by_token_sum(make_batch):
    batch = make_batch([12, 5, 9], [4, 4, 2])
    logits = torch.randn(3, 12, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.stack([response_nll(logits[row], batch.labels[row]) for row in range(3)])
    torch.testing.assert_close(ResponseNLL()(FixedLogits(logits), batch), expected, rtol=RTOL, atol=0)


def test_the_loss_of_an_example_ignores_its_neighbours(make_batch):
    batch = make_batch([12, 5, 9], [4, 4, 2])
    logits = torch.randn(3, 12, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    second_row = batch.map_tensors(lambda tensor: tensor[1:2])
    alone = ResponseNLL()(FixedLogits(logits[1:2]), second_row)
    torch.testing.assert_close(ResponseNLL()(FixedLogits(logits), batch)[1:2], alone, rtol=RTOL, atol=0)


def test_prompt_and_padding_cost_nothing(make_batch):
    batch = make_batch([12, 5, 9], [4, 4, 2])
    logits = torch.randn(3, 12, 64, generator=torch.Generator().manual_seed(1))
    nll = token_nll(logits, batch.labels)
    assert nll.shape == (3, 11)
    assert (nll[1] > 0).nonzero().flatten().tolist() == [3], "row 1 has one response token, predicted at position 3"


def test_half_precision_logits_give_a_float32_loss(make_batch):
    batch = make_batch([12, 5, 9], [4, 4, 2])
    logits = torch.randn(3, 12, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    loss = ResponseNLL()(FixedLogits(logits), batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, ResponseNLL()(FixedLogits(logits.float()), batch), rtol=1e-6, atol=0)


@pytest.fixture
def pairs(make_batch):
    sides = [make_batch([6, 5], [2, 3], pad_to=6, seed=side) for side in (0, 1)]
    input_ids, labels = (torch.stack([getattr(side, name) for side in sides], 1) for name in ("input_ids", "labels"))
    reference = torch.tensor([[9.0, 11.0], [7.0, 4.0]], dtype=torch.float64)
    return PreferenceBatch(input_ids, labels, torch.arange(2), reference)


def test_the_preference_loss_is_that_of_summed_log_probabilities(pairs):
    logits = torch.randn(4, 6, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    nll = token_nll(logits, pairs.labels.flatten(0, 1)).sum(1).view(2, 2)
    margins = [0.2 * ((9 - nll[0, 0]) - (11 - nll[0, 1])), 0.2 * ((7 - nll[1, 0]) - (4 - nll[1, 1]))]
    expected = torch.stack([torch.log1p(torch.exp(-margin)) for margin in margins])
    losses = DirectPreference(0.2)(FixedLogits(logits), pairs)
    torch.testing.assert_close(losses, expected, rtol=RTOL, atol=0)


def test_the_preference_loss_of_the_base_model_is_log_two(pairs):
    logits = torch.randn(4, 6, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pairs.reference_nll = token_nll(logits, pairs.labels.flatten(0, 1)).sum(1).view(2, 2)
    assert DirectPreference()(FixedLogits(logits), pairs).tolist() == [math.log(2), math.log(2)]


def test_beta_is_checked_and_part_of_the_cache_key():
    assert repr(DirectPreference()) == "DirectPreference(beta=0.1)"
    with pytest.raises(UserError, match="beta"):
        DirectPreference(0.0)


def test_objectives_name_their_rows_and_units():
    assert (reads_pairs(DirectPreference()), reads_pairs(ResponseNLL())) == (True, False)
    assert (loss_unit(DirectPreference()), loss_unit(ResponseNLL())) == (
        "nats per pair of answers",
        "nats per response token",
    )
    assert (reads_pairs(len), loss_unit(len)) == (False, "nats")
