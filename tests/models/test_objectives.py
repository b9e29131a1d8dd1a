import torch
from tests.reference.gradients import response_nll
from tests.support.small_models import FixedLogits

from gradfiltering.models.causal_model import token_nll
from gradfiltering.models.objectives import ResponseNLL

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
