"""State that training of a stack of members goes on from: adapters, optimiser moments, steps taken."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from gradfiltering.gradients.adam_direction import MOMENT_NAMES
from gradfiltering.models.lora import Adapters

ADAPTER_PREFIX = "adapter/"


@dataclass
class StackState:
    """Stacked members between two epochs, or within one.

    Attributes:
        adapters: parameter name -> [M, ...].
        moments: AdamW's `exp_avg` and `exp_avg_sq` -> parameter name -> [M, ...]; empty before the first step.
        steps: optimiser steps taken.
    """

    adapters: Adapters
    moments: dict[str, Adapters]
    steps: int

    def select_member(self, position: int) -> "StackState":
        """Return the member at a position of the stack, as a stack of one."""
        member_slice = slice(position, position + 1)
        moments = {
            moment_name: {
                parameter_name: stacked_value[member_slice] for parameter_name, stacked_value in parameters.items()
            }
            for moment_name, parameters in self.moments.items()
        }
        return StackState(
            {parameter_name: stacked_value[member_slice] for parameter_name, stacked_value in self.adapters.items()},
            moments,
            self.steps,
        )

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the state as one flat mapping of CPU tensors, for safetensors."""
        flat_tensors = {
            f"{ADAPTER_PREFIX}{parameter_name}": stacked_value
            for parameter_name, stacked_value in self.adapters.items()
        }
        for moment_name, parameters in self.moments.items():
            flat_tensors.update(
                {
                    f"{moment_name}/{parameter_name}": stacked_value
                    for parameter_name, stacked_value in parameters.items()
                }
            )
        flat_tensors["steps"] = torch.tensor(self.steps)
        return {
            parameter_name: stacked_value.detach().cpu().contiguous()
            for parameter_name, stacked_value in flat_tensors.items()
        }

    @classmethod
    def from_tensors(cls, flat_tensors: Mapping[str, Tensor]) -> "StackState":
        """Restore a state from `to_tensors`; further tensors in the mapping are ignored."""
        moments = {moment_name: _with_prefix(flat_tensors, f"{moment_name}/") for moment_name in MOMENT_NAMES}
        return cls(
            adapters=_with_prefix(flat_tensors, ADAPTER_PREFIX),
            moments={moment_name: parameters for moment_name, parameters in moments.items() if parameters},
            steps=int(flat_tensors["steps"]),
        )

    def write(self, path: Path) -> None:
        """Write one safetensors file."""
        save_file(self.to_tensors(), path)

    @classmethod
    def read(cls, path: Path) -> "StackState":
        """Read a file written by `write`."""
        return cls.from_tensors(load_file(path))

    @staticmethod
    def read_adapters(path: Path) -> Adapters:
        """Read the adapters alone, a third of a file written by `write`."""
        with safe_open(path, "pt") as state_file:
            all_names: list[str] = list(state_file.keys())
            adapter_names = [tensor_name for tensor_name in all_names if tensor_name.startswith(ADAPTER_PREFIX)]
            return {name.removeprefix(ADAPTER_PREFIX): state_file.get_tensor(name) for name in adapter_names}

    @classmethod
    def stack(cls, states: Sequence["StackState"]) -> "StackState":
        """Stack members that have taken equally many steps."""
        (step_count,) = {state.steps for state in states}
        moments = {
            moment_name: concatenate_members([state.moments[moment_name] for state in states])
            for moment_name in states[0].moments
        }
        return cls(concatenate_members([state.adapters for state in states]), moments, step_count)


def concatenate_members(stacks: Sequence[Adapters]) -> Adapters:
    """Concatenate stacks of members: parameter name -> [M1 + M2 + ..., ...]."""
    return {parameter_name: torch.cat([stack[parameter_name] for stack in stacks]) for parameter_name in stacks[0]}


def _with_prefix(flat_tensors: Mapping[str, Tensor], prefix: str) -> Adapters:
    return {
        parameter_name.removeprefix(prefix): stacked_value
        for parameter_name, stacked_value in flat_tensors.items()
        if parameter_name.startswith(prefix)
    }
