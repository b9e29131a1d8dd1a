"""The format in which interrupted work is kept: tensors as safetensors, everything else as JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TENSORS_FILE, STATE_FILE = "checkpoint.safetensors", "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """State from which interrupted work goes on.

    Attributes:
        tensors: on the CPU.
        state: everything else, as JSON gives it back.
    """

    tensors: dict[str, "torch.Tensor"]
    state: dict[str, Any]


def write_checkpoint(checkpoint_folder: Path, tensors: Mapping[str, "torch.Tensor"], state: Mapping[str, Any]) -> None:
    """Write a checkpoint into an existing folder."""
    from safetensors.torch import save_file

    cpu_tensors = {tensor_name: tensor.detach().cpu().contiguous() for tensor_name, tensor in tensors.items()}
    save_file(cpu_tensors, checkpoint_folder / TENSORS_FILE)
    (checkpoint_folder / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")


def read_checkpoint(checkpoint_folder: Path) -> Checkpoint:
    """Read a checkpoint from its folder."""
    from safetensors.torch import load_file

    state = json.loads((checkpoint_folder / STATE_FILE).read_text(encoding="utf-8"))
    return Checkpoint(load_file(checkpoint_folder / TENSORS_FILE), state)
