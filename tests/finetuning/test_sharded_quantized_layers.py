"""A target on weights of 4 bits, with its layers spread over two processes, with bitsandbytes itself."""

import csv

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support.processes import run_in_processes

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install bitsandbytes")

pytestmark = pytest.mark.slow


def train(folder, architecture, processes):
    command = ["-m", "tests.support.sharded_quantized_training", str(folder), architecture, str(processes)]
    folder.mkdir()
    run_in_processes(folder / "tmp", *command)
    return [folder / f"rank={rank}" for rank in range(processes)]


def read_heldout_losses(folder):
    with (folder / "curve.csv").open(newline="") as file:
        return [float(point["heldout_loss"]) for point in csv.DictReader(file)]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_two_processes_train_the_adapter_of_one(architecture, tmp_path):
    (whole,) = train(tmp_path / "one", architecture, 1)
    folders = train(tmp_path / "two", architecture, 2)
    adapter = load_file(whole / "adapter" / "adapter_model.safetensors")
    for folder in folders:
        sharded_adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
        assert sharded_adapter.keys() == adapter.keys() and all("lora" in name for name in adapter)
        for name, value in adapter.items():
            tolerance = 1e-4 * np.abs(value).max()  # float32
            np.testing.assert_allclose(sharded_adapter[name], value, rtol=0, atol=tolerance, err_msg=name)
        assert read_heldout_losses(folder) == pytest.approx(read_heldout_losses(whole), rel=1e-5)
    held_shares = [float(np.load(folder / "held_share.npy")) for folder in folders]
    assert sum(held_shares) == pytest.approx(1) and max(held_shares) < 0.6, "the layers were not spread"
