import mmap

import psutil
import pytest
import torch

from gradfiltering.runs.environment import describe_environment, git_commit, peak_memory_bytes, reset_peak_memory

CPU = torch.device("cpu")
BUFFER_BYTES = 64 * 2**20


def test_environment_names_versions_commit_seed_and_device():
    environment = describe_environment(3, CPU)
    assert environment["seed"] == 3 and environment["device"] == "cpu"
    assert {"torch", "transformers", "datasets"} <= set(environment["packages"])
    assert environment["git_commit"] == git_commit() and environment["python"].startswith("3.")


def test_environment_of_a_gpu_run_names_that_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"GPU number {device.index}")
    assert describe_environment(0, torch.device("cuda", 1))["device"] == "GPU number 1"


def test_peak_memory_sees_a_large_buffer():
    reset_peak_memory(CPU)
    before = peak_memory_bytes(CPU)
    if before > psutil.Process().memory_info().rss + BUFFER_BYTES // 4:
        pytest.skip("this system forbids a new measurement of the peak")
    buffer = mmap.mmap(-1, BUFFER_BYTES)  # not from memory that was freed before
    for offset in range(0, BUFFER_BYTES, mmap.PAGESIZE):
        buffer[offset] = 1
    assert peak_memory_bytes(CPU) - before >= BUFFER_BYTES // 2, "a 64 MiB buffer did not show in the peak"
    buffer.close()
