"""The state that training goes on from."""

import torch

from gradfiltering.ensembles.stack_state import StackState
from gradfiltering.gradients.adam_direction import MOMENT_NAMES


def test_adapters_are_read_without_moments(tmp_path):
    adapters = {"layer.A": torch.randn(2, 3, 4), "layer.B": torch.randn(2, 4, 3)}
    moments = {kind: {name: torch.rand_like(value) for name, value in adapters.items()} for kind in MOMENT_NAMES}
    StackState(adapters, moments, 7).write(tmp_path / "state.safetensors")
    found, whole = (
        StackState.read_adapters(tmp_path / "state.safetensors"),
        StackState.read(tmp_path / "state.safetensors"),
    )
    assert found.keys() == whole.adapters.keys() == adapters.keys()
    assert all(torch.equal(found[name], whole.adapters[name]) for name in adapters)
