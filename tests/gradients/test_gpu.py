"""The fused engine on a GPU; run with `make gpu`."""

import pytest
import torch
from scipy.stats import spearmanr

from gradfiltering.data.batches import Batch
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.models.objectives import ResponseNLL
from tests.reference.gradients import loop_gradients, norm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
LENGTHS, PROMPTS = [12, 5, 9, 7], [4, 4, 2, 3]


def on_gpu(model, adapters, batch, dtype):
    engine = FusedEngine(model.to(dtype), ResponseNLL(), 10_000)
    engine.to(torch.device("cuda"))
    there = {name: value.to("cuda", torch.float32) for name, value in adapters.items()}
    moved = Batch(batch.input_ids.cuda(), batch.labels.cuda(), batch.example_id)
    return engine.measure(there, moved, with_mean_gradient=True)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_float32_on_a_gpu_equals_the_float64_loop(make_model, make_adapters, make_batch, architecture):
    model, adapters, _ = make_adapters(make_model(architecture))
    batch = make_batch(LENGTHS, PROMPTS)
    expected = [
        [
            norm(loop_gradients(model, own, batch.input_ids[row, :n], batch.labels[row, :n])[1])
            for row, n in enumerate(LENGTHS)
        ]
        for own in ({name: value[member] for name, value in adapters.items()} for member in range(3))
    ]
    found = on_gpu(model, adapters, batch, torch.float32)
    torch.testing.assert_close(found.grad_norm.cpu(), torch.tensor(expected), rtol=1e-4, atol=0)


def test_bf16_on_a_gpu_ranks_rows_as_float32_does(make_model, make_adapters, make_batch):
    lengths = [4 + row % 20 for row in range(64)]
    batch = make_batch(lengths, [1 + row % 3 for row in range(64)])
    model, adapters, _ = make_adapters(make_model())
    wide = on_gpu(model, adapters, batch, torch.float32).grad_norm.cpu()
    narrow = on_gpu(model, adapters, batch, torch.bfloat16).grad_norm.cpu()
    for one, other in zip(wide, narrow, strict=True):
        assert spearmanr(one, other)[0] > 0.99
