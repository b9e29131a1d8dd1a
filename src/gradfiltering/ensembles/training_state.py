"""What training goes on from: adapters, optimiser moments, steps taken."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gradfiltering.models.lora import Adapters

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class StackState:
    """Members between two epochs, or within one.

    Attributes:
        adapters: parameter name -> [M, ...].
        moments: of AdamW -> parameter name -> [M, ...]; empty before the first step.
        steps: optimiser steps taken.
    """

    adapters: Adapters
    moments: dict[str, Adapters]
    steps: int

    def of(self, position: int) -> "StackState":
        """One member of the stack, as a stack of one."""
        cut = slice(position, position + 1)
        moments = {kind: {name: value[cut] for name, value in of.items()} for kind, of in self.moments.items()}
        return StackState({name: value[cut] for name, value in self.adapters.items()}, moments, self.steps)

    def write(self, path: Path) -> None:
        """Writes one safetensors file."""
        flat = {f"adapter/{name}": value for name, value in self.adapters.items()}
        for kind, of in self.moments.items():
            flat.update({f"{kind}/{name}": value for name, value in of.items()})
        flat["steps"] = torch.tensor(self.steps)
        save_file({name: value.detach().cpu().contiguous() for name, value in flat.items()}, path)

    @classmethod
    def read(cls, path: Path) -> "StackState":
        """Reads what `write` wrote."""
        flat = load_file(path)
        part = lambda kind: {  # noqa: E731
            name.removeprefix(f"{kind}/"): value for name, value in flat.items() if name.startswith(f"{kind}/")
        }
        moments = {kind: part(kind) for kind in MOMENTS if part(kind)}
        return cls(part("adapter"), moments, int(flat["steps"]))

    @staticmethod
    def read_adapters(path: Path) -> Adapters:
        """Reads the adapters alone, a third of what `write` wrote."""
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if name.startswith("adapter/")]  # noqa: SIM118
            return {name.removeprefix("adapter/"): file.get_tensor(name) for name in names}

    @classmethod
    def stacked(cls, states: Sequence["StackState"]) -> "StackState":
        """Members that have taken equally many steps, as one stack."""
        (steps,) = {state.steps for state in states}
        adapters = {name: torch.cat([one.adapters[name] for one in states]) for name in states[0].adapters}
        moments = {
            kind: {name: torch.cat([one.moments[kind][name] for one in states]) for name in of}
            for kind, of in states[0].moments.items()
        }
        return cls(adapters, moments, steps)
